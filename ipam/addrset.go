package ipam

import "math/bits"

// A word has one bit per child.
const (
	wordShift = 6
	wordBits  = 1 << wordShift
	wordMask  = wordBits - 1
	fullWord  = ^uint64(0)
)

// words stores the words of an addrSet. A word that was never put reads as 0, so a word of 0 need not be stored.
type words interface {
	get(level int, index uint64) (uint64, error)
	put(level int, index, word uint64) error
}

// An addrSet is a set of numbers below size. It finds the next number that is not a member in as many steps as it has
// levels.
//
// It is a tree of words, with 64 children to a word. A bit of level 0 is a member; a bit of a higher level says that
// the child is full. A search goes up past full words and then down at a clear bit, so that it costs the same in an
// empty /16 as in one with a single gap. Words without a set bit are not stored.
type addrSet struct {
	words  words
	size   uint64
	levels int
}

func newAddrSet(w words, size uint64) addrSet {
	s := addrSet{words: w, size: size, levels: 1}
	for span := uint64(wordBits); span < size; span <<= wordShift {
		s.levels++
	}
	return s
}

// add makes i a member; i must be less than the set's size.
func (s addrSet) add(i uint64) error {
	for level := range s.levels {
		word, err := s.words.get(level, i>>wordShift)
		if err != nil {
			return err
		}
		bit := uint64(1) << (i & wordMask)
		if word&bit != 0 {
			return nil
		}
		if err := s.words.put(level, i>>wordShift, word|bit); err != nil {
			return err
		}
		if word|bit != fullWord {
			return nil
		}
		i >>= wordShift
	}
	return nil
}

// remove removes i from the set.
func (s addrSet) remove(i uint64) error {
	for level := range s.levels {
		word, err := s.words.get(level, i>>wordShift)
		if err != nil {
			return err
		}
		bit := uint64(1) << (i & wordMask)
		if word&bit == 0 {
			return nil
		}
		if err := s.words.put(level, i>>wordShift, word&^bit); err != nil {
			return err
		}
		if word != fullWord {
			return nil
		}
		i >>= wordShift
	}
	return nil
}

// nextFree returns the first number not less than from that is not a member. If there is none below size, the result is
// size or more.
func (s addrSet) nextFree(from uint64) (uint64, error) {
	if from >= s.size {
		return s.size, nil
	}
	i := from
	for level := range s.levels {
		word, err := s.words.get(level, i>>wordShift)
		if err != nil {
			return 0, err
		}
		if free := ^word >> (i & wordMask); free != 0 {
			return s.descend(level, i+uint64(bits.TrailingZeros64(free)))
		}
		i = i>>wordShift + 1
	}
	return s.size, nil
}

// descend goes from bit i of level, which is clear, to the first clear bit of level 0 below it.
func (s addrSet) descend(level int, i uint64) (uint64, error) {
	for ; level > 0; level-- {
		word, err := s.words.get(level-1, i)
		if err != nil {
			return 0, err
		}
		i = i<<wordShift + uint64(bits.TrailingZeros64(^word))
	}
	return i, nil
}
