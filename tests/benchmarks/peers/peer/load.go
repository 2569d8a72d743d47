package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// load prints {"rate": answers a second, "p50": s, "p99": s} of what it sends for some seconds.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	address := flags.String("address", "", "HOST:PORT, or the path of a unix socket")
	path := flags.String("path", "", "%d: the number of the connection")
	bodies := flags.String("bodies", "", "a file with a body a line, which take turns; none: GET")
	token := flags.String("token", "", "")
	connections := flags.Int("connections", 1, "")
	seconds := flags.Float64("seconds", 1, "")
	once := flags.Bool("once", false, "each body once, on one connection")
	flags.Parse(arguments)
	requests := func(number int) [][]byte {
		where := strings.ReplaceAll(*path, "%d", strconv.Itoa(number))
		head := "Host: localhost\r\n"
		if *token != "" {
			head += "Authorization: Bearer " + *token + "\r\n"
		}
		if *bodies == "" {
			return [][]byte{[]byte("GET " + where + " HTTP/1.1\r\n" + head + "\r\n")}
		}
		content, err := os.ReadFile(*bodies)
		if err != nil {
			panic(err)
		}
		var made [][]byte
		for _, body := range strings.Split(strings.TrimSpace(string(content)), "\n") {
			made = append(made, []byte(fmt.Sprintf("PUT %s HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				where, head, len(body), body)))
		}
		return made
	}
	var mutex sync.Mutex
	var times []float64
	var failed error
	var group sync.WaitGroup
	began := time.Now()
	until := began.Add(time.Duration(*seconds * float64(time.Second)))
	for number := 0; number < *connections; number++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			own, err := drive(*address, requests(number), until, *once)
			mutex.Lock()
			defer mutex.Unlock()
			times = append(times, own...)
			if err != nil {
				failed = err
			}
		}(number)
	}
	group.Wait()
	if failed != nil {
		return failed
	}
	taken := time.Since(began).Seconds()
	sort.Float64s(times)
	at := func(part float64) float64 { return times[int(part*float64(len(times)-1))] }
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"rate": float64(len(times)) / taken, "p50": at(0.5), "p99": at(0.99), "count": float64(len(times)),
	})
}

func drive(address string, requests [][]byte, until time.Time, once bool) ([]float64, error) {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	connection, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 1<<16)
	var times []float64
	for number := 0; ; number++ {
		if once && number == len(requests) || !once && time.Now().After(until) {
			return times, nil
		}
		began := time.Now()
		if _, err := connection.Write(requests[number%len(requests)]); err != nil {
			return nil, err
		}
		if err := answer(reader); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began).Seconds())
	}
}

// answer reads one, and is an error where it is not 2xx.
func answer(reader *bufio.Reader) error {
	length, chunked := 0, false
	first, err := reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(first) < 12 || first[9] != '2' {
		return errors.New(string(first))
	}
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		text := strings.TrimSpace(string(line))
		if text == "" {
			break
		}
		name, value, _ := strings.Cut(text, ":")
		switch strings.ToLower(name) {
		case "content-length":
			length, err = strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return err
			}
		case "transfer-encoding":
			chunked = true
		}
	}
	for chunked {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(line)), 16, 64)
		if err != nil {
			return err
		}
		if _, err := reader.Discard(int(size) + 2); err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
	}
	_, err = io.CopyN(io.Discard, reader, int64(length))
	return err
}
