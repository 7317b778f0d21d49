package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"
	"reflect"
)

// A reloader runs the daemon, and runs it anew with a changed configuration when a hangup (SIGHUP) asks for it. To end
// and start in one process is what a restart does, except that systemd's sockets stay open.
type reloader struct {
	load    func() (config, error)
	hangups <-chan os.Signal
	sockets sockets
	out     io.Writer // of the log
}

func (r reloader) run(ctx context.Context, cfg config, version string) error {
	for {
		log, err := cfg.logger(r.out)
		if err != nil {
			return err
		}
		next, err := r.serve(ctx, cfg, log, version)
		if err != nil || next == nil {
			return err
		}
		log.Info("configuration reloaded; starting with it")
		cfg = *next
	}
}

// serve runs the daemon until ctx ends or the configuration changes. Then it returns the new one.
func (r reloader) serve(ctx context.Context, cfg config, log *slog.Logger, version string) (next *config, err error) {
	ctx, end := context.WithCancel(ctx)
	changed := make(chan *config, 1)
	go func() {
		changed <- r.awaitChange(ctx, cfg, log)
		end()
	}()
	err = serve(ctx, cfg, log, version, r.sockets.again(log))
	end()
	return <-changed, err
}

// awaitChange returns the new configuration when a hangup asks to read it and it has changed; nil: ctx ended. One that
// is not valid changes nothing.
func (r reloader) awaitChange(ctx context.Context, cfg config, log *slog.Logger) *config {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hangups:
		}
		switch next, err := r.load(); {
		case err != nil:
			log.Error("configuration not reloaded; the former one is in force", "err", err)
		case reflect.DeepEqual(next, cfg):
			log.Info("configuration reloaded; nothing has changed")
		default:
			return &next
		}
	}
}
