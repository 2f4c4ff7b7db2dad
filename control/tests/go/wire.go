package main

import (
	"context"
	"crypto/tls"
	"net/url"
	"time"

	"github.com/edwarnicke/grpcfd"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
	"github.com/networkservicemesh/sdk/pkg/tools/spiffejwt"
	"github.com/networkservicemesh/sdk/pkg/tools/token"
	"github.com/networkservicemesh/sdk/pkg/tools/tracing"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection"
)

// process is what each role has: who it is, and how it dials and serves.
type process struct {
	source *workloadapi.X509Source
	tokens token.GeneratorFunc
}

// newProcess waits for the first SVID from SPIFFE_ENDPOINT_SOCKET.
func newProcess(ctx context.Context) (*process, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, err
	}
	return &process{
		source: source,
		tokens: spiffejwt.TokenGeneratorFunc(source, duration("NSM_MAX_TOKEN_LIFETIME", "10m")),
	}, nil
}

// dialOptions are those of the Go components: mutual TLS with any SPIFFE ID, a token on each call, descriptors on unix sockets.
// patient calls wait for a connection; the chains of the nsmgr don't.
func (p *process) dialOptions(patient bool) []grpc.DialOption {
	config := versions(tlsconfig.MTLSClientConfig(p.source, p.source, tlsconfig.AuthorizeAny()))
	calls := []grpc.CallOption{grpc.PerRPCCredentials(token.NewPerRPCCredentials(p.tokens))}
	if patient {
		calls = append(calls, grpc.WaitForReady(true))
	}
	return append(tracing.WithTracingDial(),
		grpc.WithBlock(),
		grpc.WithDefaultCallOptions(calls...),
		grpc.WithTransportCredentials(grpcfd.TransportCredentials(credentials.NewTLS(config))),
		grpcfd.WithChainStreamInterceptor(),
		grpcfd.WithChainUnaryInterceptor(),
	)
}

// versions are those that the Go components take; with GOPEERS_TLS=1.2, the older of them alone.
func versions(config *tls.Config) *tls.Config {
	config.MinVersion = tls.VersionTLS12
	if text("GOPEERS_TLS", "") == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	return config
}

// dial opens one connection, for what is asked without a chain; with GOPEERS_PLAIN=true without TLS, as the Workload API is served.
func (p *process) dial(ctx context.Context, to *url.URL) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	soon := backoff.DefaultConfig
	soon.BaseDelay, soon.MaxDelay = 20*time.Millisecond, 100*time.Millisecond
	options := p.dialOptions(true)
	if flag("GOPEERS_PLAIN", "false") {
		options = []grpc.DialOption{grpc.WithBlock(), grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	options = append(options, grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second}))
	return grpc.DialContext(ctx, grpcutils.URLToTarget(to), options...)
}

// server is a gRPC server as the Go components start it, with reflection for tools.
func (p *process) server() *grpc.Server {
	config := versions(tlsconfig.MTLSServerConfig(p.source, p.source, tlsconfig.AuthorizeAny()))
	server := grpc.NewServer(append(tracing.WithTracing(),
		grpc.Creds(grpcfd.TransportCredentials(credentials.NewTLS(config))))...)
	reflection.Register(server)
	return server
}

// serve listens on each URL and returns when they listen; a listener that fails later ends the process by its error.
func serve(ctx context.Context, server *grpc.Server, on []*url.URL) (<-chan error, error) {
	failed := make(chan error, len(on))
	for _, each := range on {
		errs := grpcutils.ListenAndServe(ctx, each, server)
		select {
		case err := <-errs:
			return nil, err
		default:
		}
		go func() {
			if err := <-errs; err != nil && ctx.Err() == nil {
				failed <- err
			}
		}()
	}
	return failed, nil
}

// wait returns when the process shall end, or has failed.
func wait(ctx context.Context, failed <-chan error) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func addresses(name, otherwise string) []*url.URL {
	var all []*url.URL
	for _, item := range list(name, otherwise) {
		all = append(all, must(url.Parse(item)))
	}
	return all
}
