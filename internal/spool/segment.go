package spool

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
)

// The form of a segment: magic, which is for people, then records of a little-endian length, the
// CRC-32C of that length and the bytes, and the bytes. The sum covers the
// length, and no record is empty, so that a run of zeros, as a file system may
// leave after a power cut, is no record.
const (
	magic     = "ktspool1"
	headerLen = int64(len(magic))
	recordLen = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, data)
}

func appendRecord(b, data []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint32(b, sum(b[at:at+4], data))
	return append(b, data...)
}

// parse returns the record at the begin of b. Without one it says how many
// bytes it needs, or 0 if there can be none.
func parse(b []byte) (data []byte, need int) {
	if len(b) < recordLen {
		return nil, recordLen
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > MaxRecord {
		return nil, 0
	}
	if need = recordLen + int(n); len(b) < need {
		return nil, need
	}
	if data = b[recordLen:need]; sum(b[:4], data) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0
	}
	return data, need
}

// cut cuts off what follows the last whole record of g: the end of a process in
// the middle of a write, which nobody was told of.
func (g *segment) cut() error {
	f, err := os.OpenFile(g.path, os.O_RDWR, 0)
	if err != nil {
		return disk("open a segment", err)
	}
	defer func() { _ = f.Close() }()
	good, err := valid(f)
	if err != nil {
		return disk("read a segment", err)
	}
	if good == g.size {
		return nil
	}
	if err := f.Truncate(good); err != nil {
		return disk("cut a torn segment", err)
	}
	g.size = good
	return f.Sync()
}

// valid returns the length of the valid beginning of a segment.
func valid(f io.Reader) (int64, error) {
	r := bufio.NewReaderSize(f, MaxRecord+recordLen)
	if n, err := r.Discard(len(magic)); n < len(magic) {
		return 0, notEnd(err)
	}
	for good := headerLen; ; {
		b, err := r.Peek(recordLen)
		if err != nil {
			return good, notEnd(err)
		}
		_, need := parse(b)
		if need == 0 {
			return good, nil
		}
		if b, err = r.Peek(need); err != nil {
			return good, notEnd(err)
		}
		data, n := parse(b)
		if data == nil {
			return good, nil
		}
		_, _ = r.Discard(n)
		good += int64(n)
	}
}

func notEnd(err error) error {
	if err == io.EOF { //nolint:errorlint // bufio returns it as it is
		return nil
	}
	return err
}

// The cursor is the number of a segment and how much of it is done, with their
// sum. One write of 20 bytes is not torn by the end of a process; if a power
// cut spoils it, reading begins with the oldest segment.
const cursorLen = 20

func readCursor(f io.ReaderAt) (num uint64, off int64) {
	b := make([]byte, cursorLen)
	if _, err := f.ReadAt(b, 0); err != nil || sum(b[:16], nil) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, 0
	}
	return binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:]))
}

func writeCursor(f io.WriterAt, num uint64, off int64) error {
	b := binary.LittleEndian.AppendUint64(nil, num)
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	b = binary.LittleEndian.AppendUint32(b, sum(b, nil))
	_, err := f.WriteAt(b, 0)
	return err
}
