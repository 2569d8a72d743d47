package main

import (
	"encoding/json"
	"flag"
	"os"
	"sync"
	"time"
)

// load prints {"rate": answers a second, "p50": s, "p99": s, "count"} of what it sends for some seconds. The first
// request of each connection is not timed: it may set what is there, and so be no work.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	t := targets(flags)
	connections := flags.Int("connections", 1, "")
	seconds := flags.Float64("seconds", 1, "")
	pause := flags.Float64("pause", 0, "s, of each connection between two requests")
	flags.Parse(arguments)
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
			own, err := drive(t, number, until, time.Duration(*pause*float64(time.Second)))
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
	told := figures(times)
	told["rate"] = float64(len(times)+*connections) / taken
	return json.NewEncoder(os.Stdout).Encode(told)
}

func drive(t target, number int, until time.Time, pause time.Duration) ([]float64, error) {
	requests, err := t.requests(number)
	if err != nil {
		return nil, err
	}
	connection, reader, err := t.dial()
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	var times []float64
	for sent := 0; sent < 2 || time.Now().Before(until); sent++ {
		began := time.Now()
		if _, err := connection.Write(requests[sent%len(requests)]); err != nil {
			return nil, err
		}
		if err := t.answer(reader); err != nil {
			return nil, err
		}
		if sent > 0 {
			times = append(times, time.Since(began).Seconds())
		}
		if pause > 0 {
			time.Sleep(pause)
		}
	}
	return times, nil
}
