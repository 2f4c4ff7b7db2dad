package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	kernelapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/sdk-kernel/pkg/kernel/networkservice/vfconfig"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
)

// ends are the two interfaces that join one connection: by name, from the connection's id, which both sides of a forwarder know.
func ends(id string) (toClient, toEndpoint string) {
	sum := sha256.Sum256([]byte(id))
	short := hex.EncodeToString(sum[:6])
	return "c" + short, "e" + short
}

// vethServer makes the pair before it is moved (by sdk-kernel's inject) and deletes it after the Close.
type vethServer struct{}

func (vethServer) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	toClient, toEndpoint := ends(request.GetConnection().GetId())
	if _, known := vfconfig.Load(ctx, false); known {
		return next.Server(ctx).Request(ctx, request)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = toClient
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: toEndpoint}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, err
	}
	vfconfig.Store(ctx, false, &vfconfig.VFConfig{VFInterfaceName: toClient})
	connection, err := next.Server(ctx).Request(ctx, request)
	if err != nil {
		vfconfig.Delete(ctx, false)
		return nil, errors.Join(err, deleteLink(toClient))
	}
	return connection, nil
}

func (vethServer) Close(ctx context.Context, connection *networkservice.Connection) (*empty.Empty, error) {
	answer, err := next.Server(ctx).Close(ctx, connection)
	toClient, _ := ends(connection.GetId())
	vfconfig.Delete(ctx, false)
	return answer, errors.Join(err, deleteLink(toClient))
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil // gone with its namespace
	}
	return netlink.LinkDel(link)
}

// vethClient names the end that goes to the endpoint.
type vethClient struct{}

func (vethClient) Request(
	ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption,
) (*networkservice.Connection, error) {
	if _, known := vfconfig.Load(ctx, true); !known {
		_, toEndpoint := ends(request.GetConnection().GetId())
		vfconfig.Store(ctx, true, &vfconfig.VFConfig{VFInterfaceName: toEndpoint})
	}
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (vethClient) Close(ctx context.Context, connection *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	defer vfconfig.Delete(ctx, true)
	return next.Client(ctx).Close(ctx, connection, opts...)
}

// offerKernel offers the endpoint a kernel interface.
type offerKernel struct{}

func (offerKernel) Request(
	ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption,
) (*networkservice.Connection, error) {
	request.MechanismPreferences = append(request.MechanismPreferences, kernelapi.New(""))
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (offerKernel) Close(ctx context.Context, connection *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, connection, opts...)
}
