package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
)

// target is a server and what is asked of it. There is no more to HTTP here than one request and its answer need, so
// that the load takes as little as possible of the cores that it shares with the servers.
type target struct {
	address, path, bodies, token, header *string
	tls                                  *bool
}

func targets(flags *flag.FlagSet) target {
	return target{
		flags.String("address", "", "HOST:PORT, or the path of a unix socket"),
		flags.String("path", "", "%d: the number of the connection"),
		flags.String("bodies", "", "a file with a body a line, which take turns, each a PUT, or DELETE; none: GET"),
		flags.String("token", "", ""),
		flags.String("header", "", "one more of each request, as NAME: VALUE"),
		flags.Bool("tls", false, "over TLS, whoever shows whatever certificate"),
	}
}

func (t target) dial() (net.Conn, *bufio.Reader, error) {
	network := "tcp"
	if strings.HasPrefix(*t.address, "/") {
		network = "unix"
	}
	dial := net.Dial
	if *t.tls {
		dial = func(network, address string) (net.Conn, error) {
			return tls.Dial(network, address, &tls.Config{InsecureSkipVerify: true})
		}
	}
	connection, err := dial(network, *t.address)
	if err != nil {
		return nil, nil, err
	}
	return connection, bufio.NewReaderSize(connection, 1<<16), nil
}

// requests are the bytes that the connection of this number sends in turn.
func (t target) requests(number int) ([][]byte, error) {
	where := strings.ReplaceAll(*t.path, "%d", strconv.Itoa(number))
	head := where + " HTTP/1.1\r\nHost: localhost\r\n"
	if *t.token != "" {
		head += "Authorization: Bearer " + *t.token + "\r\n"
	}
	if *t.header != "" {
		head += *t.header + "\r\n"
	}
	if *t.bodies == "" {
		return [][]byte{[]byte("GET " + head + "\r\n")}, nil
	}
	content, err := os.ReadFile(*t.bodies)
	if err != nil {
		return nil, err
	}
	var made [][]byte
	for _, body := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		if body == "DELETE" {
			made = append(made, []byte("DELETE "+head+"\r\n"))
		} else {
			made = append(made, []byte(fmt.Sprintf("PUT %sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				head, len(body), body)))
		}
	}
	return made, nil
}

// answerHead reads one up to its body, and is an error where it is not 2xx.
func (t target) answerHead(reader *bufio.Reader) (length int, chunked bool, err error) {
	first, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(first) < 12 || first[9] != '2' {
		return 0, false, fmt.Errorf("%s%s: %s", *t.address, *t.path, first)
	}
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			return length, chunked, nil
		}
		switch {
		case bytes.EqualFold(line[:colon], []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[colon+1:]))); err != nil {
				return 0, false, err
			}
		case bytes.EqualFold(line[:colon], []byte("transfer-encoding")):
			chunked = true
		}
	}
}

// answer reads one whole.
func (t target) answer(reader *bufio.Reader) error {
	length, chunked, err := t.answerHead(reader)
	if err != nil {
		return err
	}
	for chunked {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, reader, size+2); err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
	}
	if length == 0 {
		return nil
	}
	_, err = reader.Discard(length)
	return err
}

// figures of times in seconds: their median, the time that 99 of 100 keep, and how many they are.
func figures(times []float64) map[string]float64 {
	sort.Float64s(times)
	at := func(part float64) float64 { return times[int(part*float64(len(times)-1))] }
	return map[string]float64{"p50": at(0.5), "p99": at(0.99), "count": float64(len(times))}
}
