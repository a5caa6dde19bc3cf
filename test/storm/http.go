package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// idle is iPXE's watchdog for a transfer in which nothing moves.
	idle = 120 * time.Second
	// script and retry as pxe/httpboot writes them.
	scriptTries, scriptSleep = 20, 5 * time.Second
)

// browser is iPXE's HTTP client: one kept connection, opened again when the server
// has closed it.
type browser struct {
	m    *machine
	conn net.Conn
	in   *bufio.Reader
}

// get fetches a URL. As iPXE does it comes back after Retry-After, as often as it
// is told to.
func (b *browser) get(ctx context.Context, url string) ([]byte, error) {
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	if at, err := netip.ParseAddrPort(host); err != nil || at.Port() != 8080 || !slices.Contains(b.m.storm.servers, at.Addr()) {
		b.m.wrong("was sent to %s", url)
	}
	for {
		kept := b.conn != nil
		resp, body, err := b.once(ctx, host, "/"+path)
		if err != nil {
			b.close()
			if kept && ctx.Err() == nil {
				continue
			}
			return nil, fmt.Errorf("getting %s: %w", url, err)
		}
		if resp.StatusCode == http.StatusOK {
			return body, nil
		}
		after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		if after <= 0 {
			return nil, fmt.Errorf("getting %s: %s: %s", url, resp.Status, body)
		}
		b.m.told++
		if err := sleep(ctx, time.Duration(after)*time.Second); err != nil {
			return nil, err
		}
	}
}

func (b *browser) once(ctx context.Context, host, path string) (*http.Response, []byte, error) {
	if b.conn == nil {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: b.m.address.AsSlice()}, Timeout: time.Minute, KeepAlive: -1}
		conn, err := d.DialContext(ctx, "tcp4", host)
		if err != nil {
			return nil, nil, err
		}
		b.conn, b.in = conn, bufio.NewReaderSize(conn, 2048)
	}
	stop := context.AfterFunc(ctx, func() { b.conn.Close() })
	defer stop()
	if err := b.conn.SetDeadline(time.Now().Add(idle)); err != nil {
		return nil, nil, err
	}
	if _, err := fmt.Fprintf(b.conn, "GET %s HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE/1.0.0+\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return nil, nil, err
	}
	resp, err := http.ReadResponse(b.in, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.ContentLength < 0 {
		return nil, nil, errors.New("an answer without Content-Length")
	}
	body, err := io.ReadAll(resp.Body)
	if resp.Close {
		b.close()
	}
	return resp, body, err
}

func (b *browser) close() {
	if b.conn != nil {
		b.conn.Close()
		b.conn = nil
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
