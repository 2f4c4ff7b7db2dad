// go02 is a client of the registry calls that Network Service Mesh had before v1, made of the module that v0.2.0 published. It reads calls
// from standard input, one a line ("register", "remove" or "find", and the message as JSON), and answers each with one line of JSON.
// v0.2.0 has no BulkRegisterNSE yet.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/networkservicemesh/networkservicemesh/controlplane/api/registry"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

type answer struct {
	Answer any    `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "go02:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeAny())
	connection, err := grpc.NewClient(os.Getenv("NSMRS_ADDRESS"), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return err
	}
	registrations := registry.NewNetworkServiceRegistryClient(connection)
	discovery := registry.NewNetworkServiceDiscoveryClient(connection)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, message, _ := strings.Cut(lines.Text(), " ")
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		got, err := call(ctx, registrations, discovery, verb, []byte(message))
		cancel()
		told := answer{Answer: got}
		if err != nil {
			told = answer{Error: err.Error()}
		}
		if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
			return err
		}
	}
	return lines.Err()
}

func call(
	ctx context.Context,
	registrations registry.NetworkServiceRegistryClient,
	discovery registry.NetworkServiceDiscoveryClient,
	verb string,
	message []byte,
) (any, error) {
	switch verb {
	case "register":
		request := &registry.NSERegistration{}
		if err := json.Unmarshal(message, request); err != nil {
			return nil, err
		}
		return registrations.RegisterNSE(ctx, request)
	case "remove":
		request := &registry.RemoveNSERequest{}
		if err := json.Unmarshal(message, request); err != nil {
			return nil, err
		}
		return registrations.RemoveNSE(ctx, request)
	case "find":
		request := &registry.FindNetworkServiceRequest{}
		if err := json.Unmarshal(message, request); err != nil {
			return nil, err
		}
		return discovery.FindNetworkService(ctx, request)
	}
	return nil, fmt.Errorf("%q: write register, remove or find", verb)
}
