package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// runWorkload serves the SPIFFE Workload API with an authority in memory: one socket GOPEERS_DIR/<name>.sock for each name of
// GOPEERS_NAMES, whose callers are spiffe://<GOPEERS_TRUST_DOMAIN>/<name>. Commands: "rotate" (new SVIDs now), "serve NAME",
// "bundle FILE" (writes our bundle as a SPIFFE bundle), "federate DOMAIN FILE" (believes a domain by such a file), "forget DOMAIN";
// "announce", "activate", "retire" (the steps to another authority); "publish PROFILE FILE" (serves our bundle at a port that it tells;
// FILE is where the web certificate's authority is written) and "follow DOMAIN URL ID" (follows another's).
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
		case "bundle":
			report(verb, authority.writeBundle(args[0]))
		case "federate":
			report(verb, authority.federate(args[0], args[1]))
		case "announce", "activate", "retire":
			report(verb, authority.renew(verb))
		case "publish":
			report(verb, publish(ctx, authority, args[0], args[1]))
		case "follow":
			report(verb, follow(ctx, authority, args[0], args[1], args[2]))
		case "forget":
			authority.change(func(federated map[string][]byte) { delete(federated, "spiffe://"+args[0]) })
			report(verb, nil)
		}
	})
	return nil
}

// authority signs SVIDs.
type authority struct {
	domain string
	ttl    time.Duration

	mu        sync.Mutex
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
	next      *authority
	old       *x509.Certificate
	rotated   chan struct{}
	federated map[string][]byte
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
	return &authority{domain: domain, ttl: ttl, key: key, cert: cert, rotated: make(chan struct{}), federated: map[string][]byte{}}, err
}

func (a *authority) rotate() {
	a.change(func(map[string][]byte) {})
}

// change changes whom we believe, and sends new SVIDs.
func (a *authority) change(how func(federated map[string][]byte)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	how(a.federated)
	close(a.rotated)
	a.rotated = make(chan struct{})
}

func (a *authority) others() map[string][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.federated)
}

// federate reads a bundle as go-spiffe does.
func (a *authority) federate(domain, file string) error {
	id, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	bundle, err := spiffebundle.Load(id, file)
	if err != nil {
		return err
	}
	var der []byte
	for _, authority := range bundle.X509Authorities() {
		der = append(der, authority.Raw...)
	}
	a.change(func(federated map[string][]byte) { federated[id.IDString()] = der })
	return nil
}

// writeBundle writes a bundle as go-spiffe does, and with it SPIRE.
func (a *authority) writeBundle(file string) error {
	text, err := a.bundle().Marshal()
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
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
	a.mu.Lock()
	defer a.mu.Unlock()
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
		SpiffeId: id.String(), X509Svid: leaf, X509SvidKey: pkcs8, Bundle: a.believed(),
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
		answer := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}, FederatedBundles: s.authority.others()}
		if err := stream.Send(answer); err != nil {
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
	for {
		rotated := s.authority.rotation()
		bundles := s.authority.others()
		s.authority.mu.Lock()
		bundles[fmt.Sprintf("spiffe://%s", s.authority.domain)] = s.authority.believed()
		s.authority.mu.Unlock()
		if err := stream.Send(&workload.X509BundlesResponse{Bundles: bundles}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-rotated:
		}
	}
}
