// The peer and the load of the benchmarks. As `peer serve`: a server of net/http and cilium/ebpf that does the bare
// work, parse, look up, update, answer, with no rights, no checks beyond the bounds, and no journal. As `peer load`:
// many connections that each send the next request once the answer is there, on the same paths for every server. As
// `peer watch` and `peer delay`: readers of events.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "peer serve|load|watch|delay")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2:])
	case "load":
		err = load(os.Args[2:])
	case "watch":
		err = watch(os.Args[2:])
	case "delay":
		err = delay(os.Args[2:])
	default:
		err = fmt.Errorf("no such command: %s", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1], err)
		os.Exit(1)
	}
}
