package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
)

// watcher is an element that tells of each Request and Close that passes, and refuses Requests when it was told to.
type watcher struct {
	refusing atomic.Bool
	delay    time.Duration
	quiet    bool
}

func (w *watcher) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if w.delay > 0 {
		select {
		case <-time.After(w.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if w.refusing.Load() {
		emit("refused", fields{"connection": request.GetConnection()})
		return nil, errors.New("refused, as the test wants it")
	}
	connection, err := next.Server(ctx).Request(ctx, request)
	if w.quiet {
		return connection, err
	}
	if err != nil {
		emit("request-failed", fields{"error": err.Error()})
		return nil, err
	}
	emit("request", fields{"connection": connection})
	return connection, nil
}

func (w *watcher) Close(ctx context.Context, connection *networkservice.Connection) (*empty.Empty, error) {
	_, err := next.Server(ctx).Close(ctx, connection)
	if !w.quiet {
		more := fields{"connection": connection}
		if err != nil {
			more["error"] = err.Error()
		}
		emit("close", more)
	}
	return new(empty.Empty), err
}

// command handles what each server understands.
func (w *watcher) command(verb string) bool {
	switch verb {
	case "refuse":
		w.refusing.Store(true)
	case "accept":
		w.refusing.Store(false)
	default:
		return false
	}
	emit("done", fields{"command": verb})
	return true
}
