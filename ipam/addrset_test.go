package ipam

import (
	"encoding/binary"
	"errors"
	"testing"
)

// mapWords stores words in a map and counts calls of get.
type mapWords struct {
	words map[wordKey]uint64
	gets  int
}

func (w *mapWords) get(level int, index uint64) (uint64, error) {
	w.gets++
	return w.words[wordKey{level, index}], nil
}

func (w *mapWords) put(level int, index, word uint64) error {
	if word == 0 {
		delete(w.words, wordKey{level, index})
		return nil
	}
	w.words[wordKey{level, index}] = word
	return nil
}

func newMapWords() *mapWords { return &mapWords{words: map[wordKey]uint64{}} }

func TestAddrSetNextFree(t *testing.T) {
	type run struct{ lo, end uint64 }
	tests := []struct {
		name string
		size uint64
		used []run
		from uint64
		want uint64 // size: none
	}{
		{"empty", 256, nil, 0, 0},
		{"empty, from within", 256, nil, 77, 77},
		{"from beyond", 256, nil, 256, 256},
		{"one address, free", 1, nil, 0, 0},
		{"one address, used", 1, []run{{0, 1}}, 0, 1},
		{"behind a run", 256, []run{{0, 10}}, 0, 10},
		{"behind a full word", 256, []run{{0, 64}}, 3, 64},
		{"behind full words and a bit", 256, []run{{0, 129}}, 0, 129},
		{"last one", 256, []run{{0, 255}}, 0, 255},
		{"full", 256, []run{{0, 256}}, 0, 256},
		{"gap is before", 256, []run{{10, 256}}, 10, 256},
		{"full, odd size", 100, []run{{0, 100}}, 0, 100},
		{"full, smaller than a word", 8, []run{{0, 8}}, 0, 8},
		{"behind a full word of level 1", 1 << 16, []run{{0, 4096}}, 0, 4096},
		{"a /16's last", 1 << 16, []run{{0, 1<<16 - 1}}, 5, 1<<16 - 1},
		{"end of a parent", 1 << 16, []run{{4032, 4096}}, 4040, 4096},
		{"a gap in a full part", 1 << 16, []run{{0, 5000}, {5001, 1 << 16}}, 100, 5000},
		{"the end of the greatest", 1 << 32, []run{{1<<32 - 70, 1 << 32}}, 1<<32 - 70, 1 << 32},
		{"near the end of the greatest", 1 << 32, []run{{1<<32 - 70, 1<<32 - 1}}, 1<<32 - 70, 1<<32 - 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newMapWords()
			s := newAddrSet(w, tt.size)
			for _, r := range tt.used {
				for i := r.lo; i < r.end; i++ {
					if err := s.add(i); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.gets = 0
			got, err := s.nextFree(tt.from)
			if err != nil {
				t.Fatal(err)
			}
			if min(got, tt.size) != tt.want {
				t.Errorf("next free from %d is %d, want %d", tt.from, got, tt.want)
			}
			if most := 2 * s.levels; w.gets > most {
				t.Errorf("search read %d words, more than %d for %d levels", w.gets, most, s.levels)
			}
		})
	}
}

func TestAddrSetLevels(t *testing.T) {
	for size, want := range map[uint64]int{
		1: 1, 64: 1, 65: 2, 256: 2, 4096: 2, 4097: 3, 1 << 16: 3, 1 << 24: 4, 1 << 32: 6,
	} {
		if got := newAddrSet(nil, size).levels; got != want {
			t.Errorf("a set of %d has %d levels, want %d", size, got, want)
		}
	}
}

type brokenWords struct{ *mapWords }

var errBroken = errors.New("broken")

func (brokenWords) get(int, uint64) (uint64, error) { return 0, errBroken }

func TestAddrSetFailure(t *testing.T) {
	s := newAddrSet(brokenWords{newMapWords()}, 256)
	if err := s.add(1); !errors.Is(err, errBroken) {
		t.Errorf("add: error is %v", err)
	}
	if err := s.remove(1); !errors.Is(err, errBroken) {
		t.Errorf("remove: error is %v", err)
	}
	if _, err := s.nextFree(1); !errors.Is(err, errBroken) {
		t.Errorf("nextFree: error is %v", err)
	}
}

// FuzzAddrSet compares an addrSet with a map. The first two bytes of the input are the size, and each four bytes an
// operation: what to do, where and for how many numbers.
func FuzzAddrSet(f *testing.F) {
	f.Add([]byte{0, 7, 0, 0, 3, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 255, 1, 0, 9, 1, 2, 0, 0, 0})
	f.Add([]byte{0x13, 0x88, 0, 0, 0, 255, 0, 1, 0, 255, 0, 2, 0, 255, 1, 1, 7, 3, 2, 0, 1, 0})
	f.Add([]byte{0x20, 0x01, 3, 0, 0, 255, 3, 0, 0, 255, 1, 0x0f, 0xff, 1, 2, 0, 0, 0, 0, 0x0f, 0xff, 1, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 || len(in) > 400 {
			return
		}
		size := uint64(binary.BigEndian.Uint16(in))%9000 + 1
		w, members := newMapWords(), map[uint64]bool{}
		s := newAddrSet(w, size)
		for in = in[2:]; len(in) >= 4; in = in[4:] {
			lo := uint64(binary.BigEndian.Uint16(in[1:])) % size
			end := min(size, lo+uint64(in[3]))
			switch in[0] % 4 {
			case 3: // a long run, so that words of the upper levels fill up
				end = min(size, lo+uint64(in[3])*64)
				fallthrough
			case 0:
				for i := lo; i < end; i++ {
					members[i] = true
					if err := s.add(i); err != nil {
						t.Fatal(err)
					}
				}
			case 1:
				for i := lo; i < end; i++ {
					delete(members, i)
					if err := s.remove(i); err != nil {
						t.Fatal(err)
					}
				}
			case 2:
				want := lo
				for want < size && members[want] {
					want++
				}
				got, err := s.nextFree(lo)
				if err != nil || min(got, size) != want {
					t.Fatalf("next free of %d from %d is %d (%v), want %d", size, lo, got, err, want)
				}
			}
		}
		equal(t, "words", w.words, wantWords(members, s.levels))
	})
}
