package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"time"

	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/metadata"
)

// runRegistryLoad measures a registry (NSM_CONNECT_TO): GOPEERS_COUNT endpoints registered by GOPEERS_CLIENTS callers, 100 of
// each service; finds by name and by service; and how long a watch of GOPEERS_WATCHERS watchers takes to see a change.
// Each caller keeps its connection: what is measured is the registry.
func runRegistryLoad(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	workers, count := number("GOPEERS_CLIENTS", "16"), number("GOPEERS_COUNT", "1000")
	callers := make([]registryapi.NetworkServiceEndpointRegistryClient, workers)
	for i := range callers {
		connection, err := self.dial(ctx, address("NSM_CONNECT_TO", ""))
		if err != nil {
			return err
		}
		callers[i] = registryapi.NewNetworkServiceEndpointRegistryClient(connection)
	}
	pick := func(n int) registryapi.NetworkServiceEndpointRegistryClient { return callers[n%workers] }
	// What the chains send with each call: a path that has no segment yet.
	ctx = metadata.AppendToOutgoingContext(ctx, "path", `{"Index":0,"PathSegments":null}`)
	perService := number("GOPEERS_PER_SERVICE", "100")
	entry := func(n int) *registryapi.NetworkServiceEndpoint {
		service := fmt.Sprintf("service-%d", n/perService)
		return &registryapi.NetworkServiceEndpoint{
			Name:                fmt.Sprintf("endpoint-%d", n),
			NetworkServiceNames: []string{service},
			NetworkServiceLabels: map[string]*registryapi.NetworkServiceLabels{
				service: {Labels: map[string]string{"app": "load"}},
			},
			Url: "tcp://192.0.2.1:5001",
		}
	}
	emit("ready", nil)
	emit("register", measure(workers, count, func(n int) error {
		_, err := pick(n).Register(ctx, entry(n))
		return err
	}))
	finds := number("GOPEERS_FINDS", "2000")
	find := func(query *registryapi.NetworkServiceEndpoint, n, want int) error {
		stream, err := pick(n).Find(ctx, &registryapi.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query})
		found := 0
		for err == nil {
			if _, err = stream.Recv(); err == nil {
				found++
			}
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if found != want {
			return fmt.Errorf("found %d, not %d", found, want)
		}
		return nil
	}
	emit("find-by-name", measure(workers, finds, func(n int) error {
		return find(&registryapi.NetworkServiceEndpoint{Name: fmt.Sprintf("endpoint-%d", n%count)}, n, 1)
	}))
	emit("find-by-service", measure(workers, finds, func(n int) error {
		service := fmt.Sprintf("service-%d", n%max(1, count/perService))
		return find(&registryapi.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}, n, min(perService, count))
	}))
	return watchLoad(ctx, callers, number("GOPEERS_WATCHERS", "100"), number("GOPEERS_CHANGES", "50"))
}

// watchLoad registers an endpoint anew, again and again, and measures from the call until each watcher has seen it.
func watchLoad(ctx context.Context, callers []registryapi.NetworkServiceEndpointRegistryClient, watchers, changes int) error {
	const service = "watched"
	seen := make(chan time.Time, watchers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open sync.WaitGroup
	query := &registryapi.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}
	entry := &registryapi.NetworkServiceEndpoint{
		Name: service, NetworkServiceNames: []string{service}, Url: "tcp://192.0.2.1:5001",
	}
	if _, err := callers[0].Register(ctx, entry.Clone()); err != nil {
		return err
	}
	for i := range watchers {
		stream, err := callers[i%len(callers)].Find(ctx,
			&registryapi.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query, Watch: true})
		if err != nil {
			return err
		}
		open.Add(1)
		go func() {
			for first := true; ; first = false {
				if _, err := stream.Recv(); err != nil {
					return
				}
				if first {
					open.Done()
					continue
				}
				seen <- time.Now()
			}
		}()
	}
	open.Wait()
	took := make([]float64, 0, watchers*changes)
	for range changes {
		started := time.Now()
		if _, err := callers[0].Register(ctx, entry.Clone()); err != nil {
			return err
		}
		for range watchers {
			took = append(took, float64((<-seen).Sub(started).Microseconds())/1000)
		}
	}
	sort.Float64s(took)
	emit("watch", fields{
		"watchers": watchers, "changes": changes, "p50_ms": took[len(took)/2], "p99_ms": took[len(took)*99/100],
		"max_ms": took[len(took)-1],
	})
	return nil
}
