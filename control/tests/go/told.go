package main

import (
	"context"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"google.golang.org/grpc"
)

// told is an element of a client that tells each Request ("asked") and each answer ("answered"), those of refreshes, too.
type told struct{}

func (told) Request(
	ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption,
) (*networkservice.Connection, error) {
	emit("asked", fields{"connection": request.GetConnection()})
	connection, err := next.Client(ctx).Request(ctx, request, opts...)
	if err != nil {
		emit("not-answered", fields{"error": err.Error()})
		return nil, err
	}
	emit("answered", fields{"connection": connection})
	return connection, nil
}

func (told) Close(
	ctx context.Context, connection *networkservice.Connection, opts ...grpc.CallOption,
) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, connection, opts...)
}
