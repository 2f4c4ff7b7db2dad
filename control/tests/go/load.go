package main

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/clientconn"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/updatepath"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"github.com/networkservicemesh/sdk/pkg/networkservice/utils/metadata"
	"github.com/networkservicemesh/sdk/pkg/tools/nsurl"
)

// runLoad measures a mesh: GOPEERS_CLIENTS concurrent clients make GOPEERS_COUNT connections through NSM_CONNECT_TO, refresh each
// once, and close them; each phase is told with its rate and its quantiles. Between the phases it waits for a line on standard
// input if GOPEERS_STEP is true, so that memory can be read. With GOPEERS_KEEP each client keeps its connection to the nsmgr, and
// is a chain of no more than the wire needs: what is measured then is the mesh. Without, it is sdk's chain, which dials each time.
func runLoad(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	load := &load{
		workers: number("GOPEERS_CLIENTS", "1"),
		count:   number("GOPEERS_COUNT", "100"),
		service: (*nsurl.NSURL)(address("NSM_NETWORK_SERVICES", "kernel://icmp-responder/nsm-1")),
	}
	if err := load.dial(ctx, self); err != nil {
		return err
	}
	load.connections = make([]*networkservice.Connection, load.count)
	emit("ready", nil)
	proceed := func() {}
	if flag("GOPEERS_STEP", "false") {
		lines := make(chan string)
		go commands(ctx, func(verb string, _ []string) { lines <- verb })
		proceed = func() {
			select {
			case <-lines:
			case <-ctx.Done():
			}
		}
	}
	proceed()
	load.phase(ctx, "request", load.request)
	proceed()
	load.phase(ctx, "refresh", load.request)
	proceed()
	load.phase(ctx, "close", load.close)
	proceed()
	return nil
}

type load struct {
	clients        []networkservice.NetworkServiceClient
	workers, count int
	service        *nsurl.NSURL
	connections    []*networkservice.Connection
}

func (l *load) dial(ctx context.Context, self *process) error {
	if !flag("GOPEERS_KEEP", "false") {
		l.clients = []networkservice.NetworkServiceClient{newClientChain(ctx, self)}
		return nil
	}
	for range l.workers {
		connection, err := self.dial(ctx, address("NSM_CONNECT_TO", ""))
		if err != nil {
			return err
		}
		// Not chain.New…: that one writes each message to the log.
		l.clients = append(l.clients, next.NewNetworkServiceClient(
			updatepath.NewClient(text("NSM_NAME", "nsc")),
			metadata.NewClient(),
			clientconn.NewClient(connection),
			kernel.NewClient(),
			sendfd.NewClient(),
			connect.NewClient(),
		))
	}
	return nil
}

func (l *load) request(ctx context.Context, n int) error {
	connection := l.connections[n]
	preferences := []*networkservice.Mechanism{l.service.Mechanism()}
	if connection == nil {
		connection = &networkservice.Connection{
			Id:             fmt.Sprintf("%s-%d", text("NSM_NAME", "nsc"), n),
			NetworkService: l.service.NetworkService(),
			Labels:         l.service.Labels(),
		}
	}
	if preferences[0].Parameters != nil {
		preferences[0].Parameters["name"] = fmt.Sprintf("nsm-%d", n)
	}
	answer, err := l.clients[n%len(l.clients)].Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: connection.Clone(), MechanismPreferences: preferences,
	})
	if err == nil {
		l.connections[n] = answer.Clone()
	}
	return err
}

func (l *load) close(ctx context.Context, n int) error {
	if l.connections[n] == nil {
		return nil
	}
	_, err := l.clients[n%len(l.clients)].Close(ctx, l.connections[n])
	return err
}

// phase does one for each connection, by as many workers as there are clients.
func (l *load) phase(ctx context.Context, name string, one func(context.Context, int) error) {
	emit(name, measure(l.workers, l.count, func(n int) error {
		ctx, cancel := context.WithTimeout(ctx, duration("NSM_REQUEST_TIMEOUT", "15s"))
		defer cancel()
		return one(ctx, n)
	}))
}

// measure calls one for 0..count from so many workers and says how long it took.
func measure(workers, count int, one func(n int) error) fields {
	var next, failed atomic.Int64
	var first atomic.Value
	took := make([]time.Duration, count)
	var all sync.WaitGroup
	started := time.Now()
	for range workers {
		all.Go(func() {
			for n := int(next.Add(1)) - 1; n < count; n = int(next.Add(1)) - 1 {
				from := time.Now()
				if err := one(n); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
				took[n] = time.Since(from)
			}
		})
	}
	all.Wait()
	total := time.Since(started)
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	at := func(quantile float64) float64 {
		return float64(took[min(count-1, int(quantile*float64(count)))].Microseconds()) / 1000
	}
	result := fields{
		"workers": workers, "count": count, "failed": failed.Load(),
		"per_second": float64(count) / total.Seconds(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1),
	}
	if message := first.Load(); message != nil {
		result["first_error"] = message
	}
	return result
}
