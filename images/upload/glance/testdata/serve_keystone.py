"""Keystone on one address of this machine. keystone-wsgi-public takes one connection
at a time, so that one which says nothing keeps all others out."""
import os
import socketserver
import sys
import wsgiref.simple_server as simple

from keystone.server.wsgi import initialize_public_application


class Server(socketserver.ThreadingMixIn, simple.WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class Handler(simple.WSGIRequestHandler):
    def log_message(self, *args):
        pass


sys.stderr = open(os.environ["ERRORS"], "a", buffering=1)
host, port = os.environ["LISTEN"].rsplit(":", 1)
del sys.argv[1:]
simple.make_server(host, int(port), initialize_public_application(), Server, Handler).serve_forever()
