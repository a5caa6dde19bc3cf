// Command probe answers every HTTP request with its host's name: what a test
// asks to know that a pod runs, and where.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	listen := flag.String("listen", ":8080", "address to listen on")
	flag.Parse()
	name, err := os.Hostname()
	if err == nil {
		server := http.Server{
			Addr:              *listen,
			ReadHeaderTimeout: 10 * time.Second,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintln(w, name)
			}),
		}
		err = server.ListenAndServe()
	}
	fmt.Fprintln(os.Stderr, "probe:", err)
	os.Exit(1)
}
