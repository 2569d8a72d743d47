package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"sync"
	"time"
)

// watch follows /events with some readers. It prints {"ready": N} once all are served, reads on until its standard
// input ends, and then prints how many events came in all, and to the reader that got the fewest.
func watch(arguments []string) error {
	flags := flag.NewFlagSet("watch", flag.ExitOnError)
	t := targets(flags)
	readers := flags.Int("readers", 1, "")
	flags.Parse(arguments)
	counts := make([]int, *readers)
	open := make([]net.Conn, *readers)
	var group sync.WaitGroup
	for number := range counts {
		connection, reader, err := t.follow()
		if err != nil {
			return err
		}
		open[number] = connection
		group.Add(1)
		go func(number int) {
			defer group.Done()
			events(reader, func() { counts[number]++ })
		}(number)
	}
	fmt.Printf("{\"ready\": %d}\n", *readers)
	io.Copy(io.Discard, os.Stdin)
	for _, connection := range open {
		connection.Close()
	}
	group.Wait()
	total, fewest := 0, counts[0]
	for _, count := range counts {
		total += count
		if count < fewest {
			fewest = count
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]int{"events": total, "fewest": fewest})
}

// delay prints {"p50", "p99": s from sending a PUT until a reader of /events had its event, "answer": s until its answer}.
func delay(arguments []string) error {
	flags := flag.NewFlagSet("delay", flag.ExitOnError)
	t := targets(flags)
	seconds := flags.Float64("seconds", 1, "")
	pause := flags.Float64("pause", 0, "s, between two requests")
	flags.Parse(arguments)
	requests, err := t.requests(0)
	if err != nil {
		return err
	}
	connection, answers, err := t.dial()
	if err != nil {
		return err
	}
	following, reader, err := t.follow()
	if err != nil {
		return err
	}
	defer following.Close()
	came := make(chan time.Time, 1024)
	go events(reader, func() { came <- time.Now() })
	var arrived, answered []float64
	var until time.Time
	wait := 200 * time.Millisecond
	for sent := 0; sent < 2 || time.Now().Before(until); sent++ {
		if sent == 1 {
			until = time.Now().Add(time.Duration(*seconds * float64(time.Second)))
			wait = 5 * time.Second
		}
		began := time.Now()
		if _, err := connection.Write(requests[sent%len(requests)]); err != nil {
			return err
		}
		if err := t.answer(answers); err != nil {
			return err
		}
		took := time.Since(began).Seconds()
		select {
		case at := <-came:
			if sent > 0 {
				arrived, answered = append(arrived, at.Sub(began).Seconds()), append(answered, took)
			}
		case <-time.After(wait):
			if sent > 0 { // the first may set what is there
				return errors.New("no event came")
			}
		}
		time.Sleep(time.Duration(*pause * float64(time.Second)))
	}
	told := figures(arrived)
	told["answer"] = figures(answered)["p50"]
	return json.NewEncoder(os.Stdout).Encode(told)
}

// follow asks for /events, until it is served.
func (t target) follow() (net.Conn, *bufio.Reader, error) {
	connection, reader, err := t.dial()
	if err != nil {
		return nil, nil, err
	}
	request := "GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + *t.token + "\r\n\r\n"
	if _, err := connection.Write([]byte(request)); err != nil {
		return nil, nil, err
	}
	if _, _, err := t.answerHead(reader); err != nil {
		return nil, nil, err
	}
	if _, err := reader.Peek(1); err != nil { // of its first comment: from now on it misses nothing
		return nil, nil, err
	}
	return connection, reader, nil
}

// events calls for each event, once all of it is there, until the stream ends.
func events(answered *bufio.Reader, one func()) {
	reader := bufio.NewReaderSize(httputil.NewChunkedReader(answered), 4096)
	isEvent, isStart := false, true
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
		if isStart && bytes.HasPrefix(line, []byte("id:")) {
			isEvent = true
		}
		if isStart && len(line) == 1 && isEvent {
			one()
			isEvent = false
		}
		isStart = err == nil
	}
}
