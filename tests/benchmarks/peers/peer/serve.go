package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

type entry struct {
	Map     string  `json:"map"`
	Index   uint32  `json:"index"`
	Program program `json:"program"`
}

type program struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
}

type server struct {
	name     string
	table    *ebpf.Map
	programs map[string]*ebpf.Program
	names    map[uint32]string
	ids      map[string]uint32
}

// serve answers /maps/NAME/entries and /maps/NAME/entries/INDEX for arrays, and programs that are pinned in a folder.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("address", "127.0.0.1:0", "")
	tables := flags.String("tables", "", "the arrays' pins, with commas between")
	folder := flags.String("programs", "", "the folder of the programs' pins")
	flags.Parse(arguments)
	programs, names, ids := map[string]*ebpf.Program{}, map[uint32]string{}, map[string]uint32{}
	pins, err := os.ReadDir(*folder)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		loaded, err := ebpf.LoadPinnedProgram(filepath.Join(*folder, pin.Name()), nil)
		if err != nil {
			return err
		}
		info, err := loaded.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		programs[pin.Name()], names[uint32(id)], ids[pin.Name()] = loaded, pin.Name(), uint32(id)
	}
	for _, table := range strings.Split(*tables, ",") {
		array, err := ebpf.LoadPinnedMap(table, nil)
		if err != nil {
			return err
		}
		s := &server{filepath.Base(table), array, programs, names, ids}
		http.HandleFunc("/maps/"+s.name+"/entries", s.all)
		http.HandleFunc("/maps/"+s.name+"/entries/", s.one)
	}
	return http.ListenAndServe(*address, nil)
}

func (s *server) answer(w http.ResponseWriter, what interface{}) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(what)
}

func (s *server) one(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.ParseUint(strings.TrimPrefix(r.URL.Path, "/maps/"+s.name+"/entries/"), 10, 32)
	if err != nil || uint32(number) >= s.table.MaxEntries() {
		http.Error(w, "no such entry", http.StatusNotFound)
		return
	}
	index := uint32(number)
	if r.Method == http.MethodPut {
		var body struct{ Program string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		chosen, found := s.programs[body.Program]
		if !found {
			http.Error(w, "no such program", http.StatusUnprocessableEntity)
			return
		}
		if err := s.table.Put(index, uint32(chosen.FD())); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s.answer(w, entry{s.name, index, program{body.Program, s.ids[body.Program]}})
		return
	}
	if r.Method == http.MethodDelete {
		if err := s.table.Delete(index); err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	var id uint32
	if err := s.table.Lookup(index, &id); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	s.answer(w, entry{s.name, index, program{s.names[id], id}})
}

func (s *server) all(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		var body struct{ Programs []*string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for index, name := range body.Programs {
			var err error
			if name == nil {
				err = s.table.Delete(uint32(index))
			} else if chosen, found := s.programs[*name]; found {
				err = s.table.Put(uint32(index), uint32(chosen.FD()))
			} else {
				err = fmt.Errorf("no such program")
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusUnprocessableEntity)
				return
			}
		}
		s.answer(w, map[string]int{"set": len(body.Programs)})
		return
	}
	entries := []entry{}
	var id uint32
	for index := uint32(0); index < s.table.MaxEntries(); index++ {
		if s.table.Lookup(index, &id) == nil {
			entries = append(entries, entry{s.name, index, program{s.names[id], id}})
		}
	}
	s.answer(w, map[string]interface{}{"map": s.name, "entries": entries})
}
