// A Go program: its runtime makes its own system calls, threads, stacks, signals and timers, and no C library's.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const about = "goroutines that compute, wait for timers, channels, pipes, sockets and signals, under a garbage collector that runs all the time"

const workers, blocks = 6, 400

var (
	dir      string
	sabotage bool
	mu       sync.Mutex
	failures []string
)

func fail(format string, a ...any) {
	mu.Lock()
	defer mu.Unlock()
	failures = append(failures, "FAIL: "+fmt.Sprintf(format, a...))
}
func check(what string, expected, got any) {
	if expected != got {
		fail("%s, expected %v, got %v", what, expected, got)
	}
}
func must[T any](v T, err error) T {
	if err != nil {
		fail("%v (in setup or on the way, not a proof)", err)
		finish()
	}
	return v
}
func write(name, text string) {
	tmp := filepath.Join(dir, "."+name+".tmp")
	if os.WriteFile(tmp, []byte(text), 0o644) != nil || os.Rename(tmp, filepath.Join(dir, name)) != nil {
		os.Exit(3)
	}
}
func finish() {
	if len(failures) == 0 {
		write("result", "OK\n")
		os.Exit(0)
	}
	write("result", strings.Join(failures, "\n")+"\n")
	os.Exit(1)
}

// One block after the other depends on all before it: nothing may be lost or done twice.
type chain struct {
	sum   [32]byte
	n     uint64
	store [blocks][]byte
}

func (c *chain) next() {
	block := make([]byte, 64+c.n%4000) // for the collector
	for i := range block {
		block[i] = byte(c.n * uint64(i+1))
	}
	h := sha256.New()
	h.Write(c.sum[:])
	h.Write(block)
	copy(c.sum[:], h.Sum(nil))
	c.store[c.n%blocks] = block
	c.n++
}

type worker struct {
	own   chain
	asked chan chan chain
}

func (w *worker) run(locked bool) {
	if locked {
		runtime.LockOSThread() // a thread of its own
	}
	for {
		select {
		case answer := <-w.asked:
			answer <- w.own
		default:
			w.own.next()
			if w.own.n%8 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
		}
	}
}

type state struct {
	pid      int
	all      [workers]*worker
	ticks    int64
	fired    chan time.Duration // of the timer: after how long
	timer    time.Duration
	numbers  chan uint64 // what came through the pipe
	sent     int64
	listener net.Listener
	usr1     chan os.Signal
	begun    time.Time
}

func setup() *state {
	s := &state{pid: os.Getpid(), fired: make(chan time.Duration, 1), timer: 700 * time.Millisecond,
		numbers: make(chan uint64, 1<<16), usr1: make(chan os.Signal, 8), begun: time.Now()}
	for i := range s.all {
		s.all[i] = &worker{asked: make(chan chan chain)}
		go s.all[i].run(i == 0)
	}
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			atomic.AddInt64(&s.ticks, 1)
		}
	}()
	time.AfterFunc(s.timer, func() { s.fired <- time.Since(s.begun) })
	r, w, err := os.Pipe()
	must(r, err)
	go func() { // waits in the poller
		b := bufio.NewReader(r)
		for {
			var n uint64
			if binary.Read(b, binary.LittleEndian, &n) != nil {
				return
			}
			s.numbers <- n
		}
	}()
	go func() {
		for n := uint64(0); n < 1<<16; n++ {
			if binary.Write(w, binary.LittleEndian, n) != nil {
				return
			}
			atomic.AddInt64(&s.sent, 1)
			time.Sleep(300 * time.Microsecond)
		}
	}()
	s.listener = must(net.Listen("tcp", "127.0.0.1:0"))
	go func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				fmt.Fprintf(c, "%d %s", s.pid, line)
			}()
		}
	}()
	signal.Notify(s.usr1, syscall.SIGUSR1)
	return s
}

func (s *state) prove() {
	if os.Getenv("DORMOUSE_TEST_FRESH_PIDS") == "" {
		check("PID", s.pid, os.Getpid())
	}
	for i, w := range s.all {
		answer := make(chan chain)
		w.asked <- answer
		got := <-answer
		if sabotage {
			got.store[0][3]++
		}
		var again chain
		for again.n < got.n {
			again.next()
		}
		check(fmt.Sprintf("the hash of worker %d after %d blocks", i, got.n), again.sum, got.sum)
		for k := range got.store {
			if string(got.store[k]) != string(again.store[k]) {
				fail("block %d of worker %d, expected the same bytes, got others", k, i)
			}
		}
	}
	// all that was sent comes, in order
	for want, sent := uint64(0), uint64(atomic.LoadInt64(&s.sent)); want < sent; want++ {
		if got := <-s.numbers; got != want {
			fail("number through the pipe, expected %d, got %d", want, got)
			break
		}
	}
	if after := <-s.fired; after < s.timer {
		fail("the timer, expected no earlier than %v, got %v", s.timer, after)
	}
	before := atomic.LoadInt64(&s.ticks)
	time.Sleep(60 * time.Millisecond)
	if atomic.LoadInt64(&s.ticks) == before {
		fail("the ticker, expected it to go on after %d, got no more", before)
	}
	c := must(net.Dial("tcp", s.listener.Addr().String()))
	fmt.Fprintln(c, "hello")
	line, _ := bufio.NewReader(c).ReadString('\n')
	check("what the server says", fmt.Sprintf("%d hello\n", s.pid), line)
	check("signals before", 0, len(s.usr1))
	must(0, syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	check("the signal", os.Signal(syscall.SIGUSR1), <-s.usr1)
}

func main() {
	for i := 1; i < len(os.Args); i++ {
		switch {
		case os.Args[i] == "--about":
			fmt.Println(about)
			return
		case os.Args[i] == "--sabotage":
			sabotage = true
		case os.Args[i] == "--dir" && i+1 < len(os.Args):
			i++
			dir, _ = filepath.Abs(os.Args[i])
		default:
			fmt.Fprintln(os.Stderr, "usage: go_runtime --dir DIR [--sabotage] | --about")
			os.Exit(2)
		}
	}
	s := setup()
	write("ready", fmt.Sprintln(s.pid))
	// ends by itself when nobody comes: counted in rounds, so that time asleep does not count
	for rounds := 0; ; rounds++ {
		if _, err := os.Stat(filepath.Join(dir, "gate")); err == nil {
			break
		}
		if rounds > 300000 {
			fail("nobody opened the gate")
			finish()
		}
		time.Sleep(2 * time.Millisecond)
	}
	s.prove()
	finish()
}
