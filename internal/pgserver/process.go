package pgserver

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A process is a child that somebody waits for.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // how it ended; valid after done
}

// launch starts cmd as as. On Linux the child is asked to stop when we die,
// however we die. The kernel ties that to the thread that forked, so one
// thread stays with the child for its whole life.
// https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
func launch(cmd *exec.Cmd, as *identity) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = sysProcAttr(as)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil // it ended well; a backend held the log open
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// stop ends the process: fast shutdown, immediate shutdown, kill.
// https://www.postgresql.org/docs/current/server-shutdown.html
func (p *process) stop() error {
	for _, try := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGINT, fastTimeout}, {syscall.SIGQUIT, quickTimeout}, {syscall.SIGKILL, quickTimeout}} {
		select {
		case <-p.done: // reaped: its pid may be somebody else's by now
			return nil
		default:
		}
		_ = signal(p.pid, try.sig) // gone meanwhile is what we want
		timer := time.NewTimer(try.wait)
		select {
		case <-p.done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
	return fault.Newf(fault.Unavailable, "stop PostgreSQL", "pid %d did not end after SIGKILL", p.pid)
}
