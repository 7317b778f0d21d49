package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
)

// The layout of a bbolt file (go.etcd.io/bbolt/internal/common, version 2). Numbers are in the byte order of the
// machine.
const (
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaLen     = 64 // of a meta record, with its checksum
	metaSummed  = 56 // what the checksum is over

	pageHead    = 16
	elementLen  = 16
	bucketHead  = 16
	isBranch    = 0x01
	isLeaf      = 0x02
	isFreelist  = 0x10
	isBucket    = 0x01 // flag of a leaf's element
	noFreelist  = math.MaxUint64
	manyFree    = math.MaxUint16 // the count of a free list whose real count is its first entry
	minPageSize = 1024
	maxPageSize = 64 << 10
	maxDepth    = 64 // of pages below pages: bbolt needs some ten for all that a disk can hold
)

// A pageMeta is a meta record: where the newest transaction is.
type pageMeta struct {
	root, freelist, pages, tx uint64
	pageSize                  uint64
	version                   uint32
}

// A pageFile is a whole file, read into memory. Its methods check the structure of its pages without trusting any
// number in it, so that a damaged file ends nothing but the examination.
type pageFile struct {
	raw  []byte
	meta pageMeta
	// owner says what each page below meta.pages is for; empty: nothing yet.
	owner []string
}

// checkPages checks that every page of a file is reachable once or free, that it is in order, and that nothing points
// out of it.
func checkPages(raw []byte) error {
	meta, err := newestMeta(raw)
	if err != nil {
		return err
	}
	f := &pageFile{raw: raw, meta: meta}
	if n := uint64(len(raw)) / meta.pageSize; meta.pages < 2 || meta.pages > n {
		return fmt.Errorf("%d pages are in use, the file has %d: %w", meta.pages, n, ErrDamaged)
	}
	f.owner = make([]string, meta.pages)
	f.owner[0], f.owner[1] = "meta", "meta"
	if err := f.bucket(meta.root, 0); err != nil {
		return err
	}
	if meta.freelist == noFreelist {
		return nil
	}
	if err := f.free(); err != nil {
		return err
	}
	for id, owner := range f.owner {
		if owner == "" {
			return fmt.Errorf("page %d is neither used nor free: %w", id, ErrDamaged)
		}
	}
	return nil
}

// newestMeta finds the meta record of the newest transaction. One of the two may be torn: the transaction before it is
// whole then.
func newestMeta(raw []byte) (newest pageMeta, err error) {
	err = fmt.Errorf("no sound meta page: %w", ErrDamaged)
	for size := uint64(minPageSize); size <= maxPageSize; size *= 2 {
		for _, at := range []uint64{0, size} {
			m, ok := metaAt(raw, at)
			if !ok || m.pageSize != size {
				continue
			}
			if m.version != metaVersion {
				return m, fmt.Errorf("version %d of the file's format is not known", m.version)
			}
			if err != nil || m.tx > newest.tx {
				newest, err = m, nil
			}
		}
	}
	return newest, err
}

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

// A page is one page with those that overflow from it.
type page struct {
	id    uint64
	flags uint16
	count int
	body  []byte // all of it, from the header on
}

// take returns a page and notes what it is for.
func (f *pageFile) take(id uint64, owner string) (p page, err error) {
	size := f.meta.pageSize
	if id < 2 || id >= f.meta.pages {
		return p, fmt.Errorf("page %d of %s is none of the file's %d: %w", id, owner, f.meta.pages, ErrDamaged)
	}
	head := f.raw[id*size:][:pageHead]
	order := binary.NativeEndian
	if got := order.Uint64(head); got != id {
		return p, fmt.Errorf("page %d says that it is page %d: %w", id, got, ErrDamaged)
	}
	last := id + uint64(order.Uint32(head[12:]))
	if last >= f.meta.pages {
		return p, fmt.Errorf("page %d ends behind the file: %w", id, ErrDamaged)
	}
	for i := id; i <= last; i++ {
		if f.owner[i] != "" {
			return p, fmt.Errorf("page %d is in two places, %s and %s: %w", i, f.owner[i], owner, ErrDamaged)
		}
		f.owner[i] = owner
	}
	return page{id, order.Uint16(head[8:]), int(order.Uint16(head[10:])), f.raw[id*size : (last+1)*size]}, nil
}

// bucket checks the pages of a bucket.
func (f *pageFile) bucket(root uint64, depth int) error {
	p, err := f.take(root, "a bucket")
	if err == nil {
		err = f.node(p, nil, nil, depth)
	}
	return err
}

// node checks a page and those below it. Its keys are from low on, and before high; nil: there is no such bound.
func (f *pageFile) node(p page, low, high []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is too deep: %w", p.id, ErrDamaged)
	}
	if p.flags != isBranch && p.flags != isLeaf {
		return fmt.Errorf("page %d is of no known kind (%#x): %w", p.id, p.flags, ErrDamaged)
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
			if child, err = f.take(e.child, "a branch"); err == nil {
				err = f.node(child, e.key, next, depth+1)
			}
		case e.flags&isBucket != 0:
			err = f.nested(p, e, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nested checks a bucket whose head is a leaf's value. A small one is there as a whole.
func (f *pageFile) nested(p page, e element, depth int) error {
	if len(e.value) < bucketHead {
		return fmt.Errorf("bucket %q of page %d is cut off: %w", e.key, p.id, ErrDamaged)
	}
	if root := binary.NativeEndian.Uint64(e.value); root != 0 {
		return f.bucket(root, depth)
	}
	inline := e.value[bucketHead:]
	if len(inline) < pageHead {
		return fmt.Errorf("bucket %q of page %d is cut off: %w", e.key, p.id, ErrDamaged)
	}
	order := binary.NativeEndian
	return f.node(page{p.id, order.Uint16(inline[8:]), int(order.Uint16(inline[10:])), inline}, nil, nil, depth)
}

// An element is one key of a page, with the page below it or its value.
type element struct {
	key, value []byte
	child      uint64
	flags      uint32
}

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
			pos, keyLen, valueLen = uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[8:])), uint64(order.Uint32(b[12:]))
		}
		from := uint64(at) + pos
		if from+keyLen+valueLen > uint64(len(p.body)) {
			return nil, fmt.Errorf("an element of page %d ends behind it: %w", p.id, ErrDamaged)
		}
		e.key, e.value = p.body[from:from+keyLen], p.body[from+keyLen:from+keyLen+valueLen]
		all = append(all, e)
	}
	return all, nil
}

// free checks the list of free pages.
func (f *pageFile) free() error {
	p, err := f.take(f.meta.freelist, "the free list")
	if err != nil {
		return err
	}
	ids := p.body[pageHead:]
	count := uint64(p.count)
	if p.flags != isFreelist {
		return fmt.Errorf("page %d is no free list (%#x): %w", p.id, p.flags, ErrDamaged)
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
			return fmt.Errorf("page %d is free, and is not: %w", id, ErrDamaged)
		}
		f.owner[id] = "free"
	}
	return nil
}
