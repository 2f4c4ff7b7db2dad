package main

import (
	"context"
	"errors"
	"io"
	"time"

	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/common/null"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// runRegistryClient uses a registry (NSM_CONNECT_TO) as told. Commands: "VERB KIND MESSAGE", with VERB one of register,
// unregister, find, watch, KIND one of ns, nse, and MESSAGE the protobuf JSON without blanks. What is registered is refreshed, and
// registered anew when the registry has lost it. With GOPEERS_RAW=true there is no chain: each call reaches the server. Answers: "answer", "failed"; a watch tells "found" for each message.
func runRegistryClient(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	clients := newRegistryClients(ctx, self, flag("GOPEERS_RETRY", "false"))
	if flag("GOPEERS_RAW", "false") {
		connection, err := self.dial(ctx, address("NSM_CONNECT_TO", ""))
		if err != nil {
			return err
		}
		clients = &registryClients{
			services:  registryapi.NewNetworkServiceRegistryClient(connection),
			endpoints: registryapi.NewNetworkServiceEndpointRegistryClient(connection),
		}
		// What the chains send with each call: a path that has no segment yet.
		ctx = metadata.AppendToOutgoingContext(ctx, "path", `{"Index":0,"PathSegments":null}`)
	}
	emit("ready", nil)
	commands(ctx, func(verb string, args []string) {
		if len(args) != 2 {
			report(verb, errors.New("write: VERB KIND MESSAGE"))
			return
		}
		if verb == "watch" {
			go clients.run(ctx, verb, args[0], args[1])
			return
		}
		ctx, cancel := context.WithTimeout(ctx, duration("NSM_REQUEST_TIMEOUT", "15s"))
		defer cancel()
		clients.run(ctx, verb, args[0], args[1])
	})
	return nil
}

type registryClients struct {
	services  registryapi.NetworkServiceRegistryClient
	endpoints registryapi.NetworkServiceEndpointRegistryClient
}

// newRegistryClients are sdk's chains with the default policies; without retry an error is seen at once.
func newRegistryClients(ctx context.Context, self *process, retry bool) *registryClients {
	options := []registryclient.Option{
		registryclient.WithClientURL(address("NSM_CONNECT_TO", "")),
		registryclient.WithDialTimeout(5 * time.Second),
		registryclient.WithDialOptions(self.dialOptions(true)...),
		registryclient.WithAuthorizeNSRegistryClient(authorizeServiceClient()),
		registryclient.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	}
	if !retry {
		options = append(options,
			registryclient.WithNSRetryClient(null.NewNetworkServiceRegistryClient()),
			registryclient.WithNSERetryClient(null.NewNetworkServiceEndpointRegistryClient()))
	}
	return &registryClients{
		services:  registryclient.NewNetworkServiceRegistryClient(ctx, options...),
		endpoints: registryclient.NewNetworkServiceEndpointRegistryClient(ctx, options...),
	}
}

func (c *registryClients) run(ctx context.Context, verb, kind, message string) {
	answer, err := c.call(ctx, verb, kind, message)
	if err != nil {
		emit("failed", fields{"command": verb, "error": err.Error(), "code": status.Code(root(err)).String()})
		return
	}
	emit("answer", fields{"command": verb, "messages": answer})
}

// root is the gRPC error under the words that the chain's elements have added.
func root(err error) error {
	for each := err; each != nil; each = errors.Unwrap(each) {
		if _, ok := each.(interface{ GRPCStatus() *status.Status }); ok {
			return each
		}
	}
	return err
}

func (c *registryClients) call(ctx context.Context, verb, kind, message string) ([]proto.Message, error) {
	watch := verb == "watch"
	if kind == "ns" {
		service := new(registryapi.NetworkService)
		if err := protojson.Unmarshal([]byte(message), service); err != nil {
			return nil, err
		}
		switch verb {
		case "register":
			answer, err := c.services.Register(ctx, service)
			return []proto.Message{answer}, err
		case "unregister":
			_, err := c.services.Unregister(ctx, service)
			return nil, err
		}
		stream, err := c.services.Find(ctx, &registryapi.NetworkServiceQuery{NetworkService: service, Watch: watch})
		return drain(watch, stream, err)
	}
	endpoint := new(registryapi.NetworkServiceEndpoint)
	if err := protojson.Unmarshal([]byte(message), endpoint); err != nil {
		return nil, err
	}
	switch verb {
	case "register":
		answer, err := c.endpoints.Register(ctx, endpoint)
		return []proto.Message{answer}, err
	case "unregister":
		_, err := c.endpoints.Unregister(ctx, endpoint)
		return nil, err
	}
	stream, err := c.endpoints.Find(ctx, &registryapi.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpoint, Watch: watch})
	return drain(watch, stream, err)
}

// drain reads a stream to its end; the messages of a watch are told as they come.
func drain[M proto.Message](watch bool, stream interface{ Recv() (M, error) }, err error) (all []proto.Message, _ error) {
	for err == nil {
		var message M
		if message, err = stream.Recv(); err == nil {
			if watch {
				emit("found", fields{"message": message})
			}
			all = append(all, message)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}
