package main

import (
	"context"
	"errors"
	"io"
	"net/url"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// runObserver looks at a mesh from outside. Commands: "monitor NAME URL" tells each connection event of that server, and goes on
// after the server has restarted; "health NAME URL [SERVICE]" waits until the server says that it serves; "found NAME URL" and
// "gone NAME URL" wait until the registry has an endpoint of that name, or has none.
func runObserver(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	emit("ready", nil)
	commands(ctx, func(verb string, args []string) {
		if len(args) < 2 {
			report(verb, errors.New("write: VERB NAME URL"))
			return
		}
		to, err := url.Parse(args[1])
		if err != nil {
			report(verb, err)
			return
		}
		switch verb {
		case "monitor":
			go func() {
				for ctx.Err() == nil {
					observe(ctx, self, args[0], to)
					pause(ctx)
				}
			}()
		case "health":
			service := ""
			if len(args) > 2 {
				service = args[2]
			}
			go func() {
				for !healthy(ctx, self, to, service) {
					pause(ctx)
				}
				emit("serving", fields{"at": args[0], "service": service})
			}()
		case "found", "gone":
			go func() {
				for known(ctx, self, to, args[0]) != (verb == "found") {
					pause(ctx)
				}
				emit(verb, fields{"at": args[0]})
			}()
		}
	})
	return nil
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// observe reads one stream to its end.
func observe(ctx context.Context, self *process, name string, to *url.URL) {
	connection, err := self.dial(ctx, to)
	if err != nil {
		return
	}
	defer func() { _ = connection.Close() }()
	stream, err := networkservice.NewMonitorConnectionClient(connection).
		MonitorConnections(ctx, new(networkservice.MonitorScopeSelector))
	if err != nil {
		return
	}
	for {
		event, err := stream.Recv()
		if err != nil {
			emit("unmonitored", fields{"at": name, "error": err.Error()})
			return
		}
		emit("monitored", fields{"at": name, "type": event.GetType().String(), "message": event})
	}
}

func healthy(ctx context.Context, self *process, to *url.URL, service string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	connection, err := self.dial(ctx, to)
	if err != nil {
		return false
	}
	defer func() { _ = connection.Close() }()
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	return err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// known says whether a registry has an endpoint of this name; a registry that does not answer is asked again.
func known(ctx context.Context, self *process, to *url.URL, name string) bool {
	for ctx.Err() == nil {
		if found, err := look(ctx, self, to, name); err == nil {
			return found
		}
		pause(ctx)
	}
	return false
}

func look(ctx context.Context, self *process, to *url.URL, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	connection, err := self.dial(ctx, to)
	if err != nil {
		return false, err
	}
	defer func() { _ = connection.Close() }()
	stream, err := registryapi.NewNetworkServiceEndpointRegistryClient(connection).Find(ctx,
		&registryapi.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &registryapi.NetworkServiceEndpoint{Name: name}})
	if err != nil {
		return false, err
	}
	_, err = stream.Recv()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}
