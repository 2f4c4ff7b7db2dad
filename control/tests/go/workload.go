package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// runWorkload serves the SPIFFE Workload API with an authority in memory: one socket GOPEERS_DIR/<name>.sock for each name of
// GOPEERS_NAMES, whose callers are spiffe://<GOPEERS_TRUST_DOMAIN>/<name>. Commands: "rotate" (new SVIDs now), "serve NAME".
func runWorkload(ctx context.Context) error {
	authority, err := newAuthority(text("GOPEERS_TRUST_DOMAIN", "example.org"), duration("GOPEERS_TTL", "1h"))
	if err != nil {
		return err
	}
	dir := text("GOPEERS_DIR", ".")
	open := func(name string) error {
		listener, err := net.Listen("unix", filepath.Join(dir, name+".sock"))
		if err != nil {
			return err
		}
		if err := os.Chmod(listener.Addr().String(), 0o777); err != nil {
			return err
		}
		server := grpc.NewServer()
		workload.RegisterSpiffeWorkloadAPIServer(server, &workloadServer{authority: authority, name: name})
		go func() { <-ctx.Done(); server.Stop() }()
		go func() { _ = server.Serve(listener) }()
		return nil
	}
	for _, name := range list("GOPEERS_NAMES", "") {
		if err := open(name); err != nil {
			return err
		}
	}
	emit("ready", nil)
	commands(ctx, func(verb string, args []string) {
		switch verb {
		case "rotate":
			authority.rotate()
			report(verb, nil)
		case "serve":
			report(verb, open(args[0]))
		}
	})
	return nil
}

// authority signs SVIDs.
type authority struct {
	domain string
	ttl    time.Duration
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate

	mu      sync.Mutex
	rotated chan struct{}
}

func newAuthority(domain string, ttl time.Duration) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: domain},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: domain}},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{domain: domain, ttl: ttl, key: key, cert: cert, rotated: make(chan struct{})}, err
}

func (a *authority) rotate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.rotated)
	a.rotated = make(chan struct{})
}

func (a *authority) rotation() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rotated
}

func (a *authority) issue(name string) (*workload.X509SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := &url.URL{Scheme: "spiffe", Host: a.domain, Path: "/" + name}
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))),
		URIs:         []*url.URL{id},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(a.ttl),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		// The specification wants it said that a leaf is no authority.
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return &workload.X509SVID{
		SpiffeId: id.String(), X509Svid: leaf, X509SvidKey: pkcs8, Bundle: a.cert.Raw,
	}, err
}

type workloadServer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	authority *authority
	name      string
}

// security is the header that a caller must send, so that a browser can't be made to call.
func security(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

func (s *workloadServer) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := security(stream.Context()); err != nil {
		return err
	}
	for {
		rotated := s.authority.rotation()
		svid, err := s.authority.issue(s.name)
		if err != nil {
			return err
		}
		if err := stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-rotated:
		case <-time.After(s.authority.ttl / 2):
		}
	}
}

func (s *workloadServer) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	if err := security(stream.Context()); err != nil {
		return err
	}
	bundles := map[string][]byte{fmt.Sprintf("spiffe://%s", s.authority.domain): s.authority.cert.Raw}
	if err := stream.Send(&workload.X509BundlesResponse{Bundles: bundles}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}
