package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
)

// These constants describe the layout of a bbolt file (go.etcd.io/bbolt/internal/common, version 2). Numbers are in the
// byte order of the machine.
const (
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaLen     = 64 // of a meta record, with its checksum
	metaSummed  = 56 // the part that the checksum covers

	pageHead    = 16
	elementLen  = 16
	bucketHead  = 16
	isBranch    = 0x01
	isLeaf      = 0x02
	isFreelist  = 0x10
	isBucket    = 0x01 // a flag of a leaf's element
	noFreelist  = math.MaxUint64
	manyFree    = math.MaxUint16 // stands for a free list whose count is its first entry
	minPageSize = 1024
	maxPageSize = 64 << 10
	maxDepth    = 64 // levels of pages: bbolt needs some ten for all that a disk can hold
)

// A pageMeta is a meta record, which points to the pages of a transaction.
type pageMeta struct {
	root, freelist, pages, tx uint64
	pageSize                  uint64
	version                   uint32
}

// A pageFile is a whole file in memory. Its methods check the structure of its pages without trusting any number in it,
// so that a damaged file cannot crash the process.
type pageFile struct {
	raw  []byte
	meta pageMeta
	// owner says what each page below meta.pages is used for; empty: nothing so far.
	owner []string
}

// checkPages checks that every page of a file is either reachable exactly once or free, that keys are in order, and
// that no reference points outside of the file.
func checkPages(raw []byte) error {
	meta, err := newestMeta(raw)
	if err != nil {
		return err
	}
	f := &pageFile{raw: raw, meta: meta}
	if n := uint64(len(raw)) / meta.pageSize; meta.pages < 2 || meta.pages > n {
		return fmt.Errorf("the meta page counts %d pages, the file has %d: %w", meta.pages, n, ErrDamaged)
	}
	f.owner = make([]string, meta.pages)
	f.owner[0], f.owner[1] = "meta", "meta"
	if err := f.checkBucket(meta.root, 0); err != nil {
		return err
	}
	if meta.freelist == noFreelist {
		return nil
	}
	if err := f.checkFreeList(); err != nil {
		return err
	}
	for id, owner := range f.owner {
		if owner == "" {
			return fmt.Errorf("page %d is neither used nor free: %w", id, ErrDamaged)
		}
	}
	return nil
}

// newestMeta returns the meta record of the newest transaction. One of the two records may be torn; then it returns the
// one of the transaction before.
func newestMeta(raw []byte) (newest pageMeta, err error) {
	err = fmt.Errorf("no sound meta page: %w", ErrDamaged)
	for size := uint64(minPageSize); size <= maxPageSize; size *= 2 {
		for _, at := range []uint64{0, size} {
			m, ok := metaAt(raw, at)
			if !ok || m.pageSize != size {
				continue
			}
			if m.version != metaVersion {
				return m, fmt.Errorf("unknown file format version %d", m.version)
			}
			if err != nil || m.tx > newest.tx {
				newest, err = m, nil
			}
		}
	}
	return newest, err
}

// metaAt reads the meta record of the page at an offset.
func metaAt(raw []byte, at uint64) (m pageMeta, ok bool) {
	if at+pageHead+metaLen > uint64(len(raw)) {
		return m, false
	}
	b := raw[at+pageHead:][:metaLen]
	order := binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSummed])
	if order.Uint32(b) != metaMagic || order.Uint64(b[metaSummed:]) != sum.Sum64() {
		return m, false
	}
	return pageMeta{
		version: order.Uint32(b[4:]), pageSize: uint64(order.Uint32(b[8:])), root: order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]), pages: order.Uint64(b[40:]), tx: order.Uint64(b[48:]),
	}, true
}

// A page is one page with its overflow pages.
type page struct {
	id    uint64
	flags uint16
	count int
	body  []byte // all bytes, with the header
}

// usePage returns a page and records what it is used for.
func (f *pageFile) usePage(id uint64, owner string) (p page, err error) {
	size := f.meta.pageSize
	if id < 2 || id >= f.meta.pages {
		return p, fmt.Errorf("page %d of %s is not one of the file's %d: %w", id, owner, f.meta.pages, ErrDamaged)
	}
	head := f.raw[id*size:][:pageHead]
	order := binary.NativeEndian
	if got := order.Uint64(head); got != id {
		return p, fmt.Errorf("page %d has the number %d: %w", id, got, ErrDamaged)
	}
	last := id + uint64(order.Uint32(head[12:]))
	if last >= f.meta.pages {
		return p, fmt.Errorf("page %d ends after the end of the file: %w", id, ErrDamaged)
	}
	for i := id; i <= last; i++ {
		if f.owner[i] != "" {
			return p, fmt.Errorf("page %d is used twice, by %s and %s: %w", i, f.owner[i], owner, ErrDamaged)
		}
		f.owner[i] = owner
	}
	return page{id, order.Uint16(head[8:]), int(order.Uint16(head[10:])), f.raw[id*size : (last+1)*size]}, nil
}

// checkBucket checks the pages of a bucket.
func (f *pageFile) checkBucket(root uint64, depth int) error {
	p, err := f.usePage(root, "a bucket")
	if err == nil {
		err = f.checkNode(p, nil, nil, depth)
	}
	return err
}

// checkNode checks a page and those below it. Its keys must be at least low and less than high; nil: no bound.
func (f *pageFile) checkNode(p page, low, high []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is nested too deeply: %w", p.id, ErrDamaged)
	}
	if p.flags != isBranch && p.flags != isLeaf {
		return fmt.Errorf("page %d is of unknown kind %#x: %w", p.id, p.flags, ErrDamaged)
	}
	elements, err := p.elements()
	if err != nil {
		return err
	}
	if p.flags == isBranch && len(elements) == 0 {
		return fmt.Errorf("branch page %d is empty: %w", p.id, ErrDamaged)
	}
	for i, e := range elements {
		next := high
		if i+1 < len(elements) {
			next = elements[i+1].key
		}
		if low != nil && bytes.Compare(e.key, low) < 0 || next != nil && bytes.Compare(e.key, next) >= 0 {
			return fmt.Errorf("keys of page %d are out of order: %w", p.id, ErrDamaged)
		}
		switch {
		case p.flags == isBranch:
			var child page
			if child, err = f.usePage(e.child, "a branch"); err == nil {
				err = f.checkNode(child, e.key, next, depth+1)
			}
		case e.flags&isBucket != 0:
			err = f.checkNested(p, e, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkNested checks a bucket whose header is the value of a leaf's element. A small bucket is stored there entirely.
func (f *pageFile) checkNested(p page, e element, depth int) error {
	if len(e.value) < bucketHead {
		return fmt.Errorf("bucket %q of page %d is truncated: %w", e.key, p.id, ErrDamaged)
	}
	if root := binary.NativeEndian.Uint64(e.value); root != 0 {
		return f.checkBucket(root, depth)
	}
	inline := e.value[bucketHead:]
	if len(inline) < pageHead {
		return fmt.Errorf("bucket %q of page %d is truncated: %w", e.key, p.id, ErrDamaged)
	}
	order := binary.NativeEndian
	return f.checkNode(page{p.id, order.Uint16(inline[8:]), int(order.Uint16(inline[10:])), inline}, nil, nil, depth)
}

// An element is one key of a page, with its child page or its value.
type element struct {
	key, value []byte
	child      uint64
	flags      uint32
}

// elements reads the elements of a page.
func (p page) elements() (all []element, err error) {
	if pageHead+p.count*elementLen > len(p.body) {
		return nil, fmt.Errorf("page %d has no room for %d elements: %w", p.id, p.count, ErrDamaged)
	}
	order := binary.NativeEndian
	for i := range p.count {
		at := pageHead + i*elementLen
		b := p.body[at:][:elementLen]
		var e element
		var pos, keyLen, valueLen uint64
		if p.flags == isBranch {
			pos, keyLen, e.child = uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint64(b[8:])
		} else {
			e.flags = order.Uint32(b)
			pos, keyLen, valueLen = uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[8:])),
				uint64(order.Uint32(b[12:]))
		}
		from := uint64(at) + pos
		if from+keyLen+valueLen > uint64(len(p.body)) {
			return nil, fmt.Errorf("an element of page %d ends after the end of the page: %w", p.id, ErrDamaged)
		}
		e.key, e.value = p.body[from:from+keyLen], p.body[from+keyLen:from+keyLen+valueLen]
		all = append(all, e)
	}
	return all, nil
}

// checkFreeList checks the list of free pages.
func (f *pageFile) checkFreeList() error {
	p, err := f.usePage(f.meta.freelist, "the free list")
	if err != nil {
		return err
	}
	ids := p.body[pageHead:]
	count := uint64(p.count)
	if p.flags != isFreelist {
		return fmt.Errorf("page %d is not a free list but of kind %#x: %w", p.id, p.flags, ErrDamaged)
	}
	if count == manyFree && len(ids) >= 8 {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("the free list has no room for %d pages: %w", count, ErrDamaged)
	}
	for i := range count {
		id := binary.NativeEndian.Uint64(ids[8*i:])
		if id < 2 || id >= f.meta.pages || f.owner[id] != "" {
			return fmt.Errorf("page %d is in the free list, and not free: %w", id, ErrDamaged)
		}
		f.owner[id] = "free"
	}
	return nil
}
