package main

import (
	"context"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// runProbe asks a server (NSM_CONNECT_TO) for its health, of each service in GOPEERS_SERVICES and overall, and by reflection for
// its services and their methods, as grpcurl does.
func runProbe(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, duration("GOPEERS_TIMEOUT", "10s"))
	defer cancel()
	connection, err := self.dial(ctx, address("NSM_CONNECT_TO", ""))
	if err != nil {
		return err
	}
	health := make(map[string]string)
	for _, service := range append([]string{""}, list("GOPEERS_SERVICES", "")...) {
		health[service] = "no answer"
		for health[service] != "SERVING" && ctx.Err() == nil {
			answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
			if err == nil {
				health[service] = answer.GetStatus().String()
			} else {
				health[service] = err.Error()
			}
			if health[service] != "SERVING" {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	more := fields{"health": health}
	if flag("GOPEERS_REFLECTION", "true") {
		stream, err := reflection.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		methods, err := listMethods(stream)
		if err != nil {
			return err
		}
		more["methods"] = methods
		more["services_v1alpha"], err = listServicesAlpha(ctx, connection)
		if err != nil {
			return err
		}
	}
	emit("probed", more)
	return nil
}

// listServicesAlpha asks by the older name of reflection, which older tools try alone.
func listServicesAlpha(ctx context.Context, connection *grpc.ClientConn) (names []string, err error) {
	stream, err := alpha.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, err
	}
	request := &alpha.ServerReflectionRequest{MessageRequest: &alpha.ServerReflectionRequest_ListServices{ListServices: "*"}}
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	sort.Strings(names)
	return names, err
}

// listMethods asks for each service's file and reads the methods there.
func listMethods(stream reflection.ServerReflection_ServerReflectionInfoClient) ([]string, error) {
	ask := func(request *reflection.ServerReflectionRequest) (*reflection.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	answer, err := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{ListServices: "*"},
	})
	if err != nil {
		return nil, err
	}
	var methods []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		answer, err := ask(&reflection.ServerReflectionRequest{
			MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.GetName()},
		})
		if err != nil {
			return nil, err
		}
		for _, bytes := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(bytes, file); err != nil {
				return nil, err
			}
			for _, each := range file.GetService() {
				if name := strings.TrimPrefix(file.GetPackage()+"."+each.GetName(), "."); name == service.GetName() {
					for _, method := range each.GetMethod() {
						methods = append(methods, name+"/"+method.GetName())
					}
				}
			}
		}
	}
	sort.Strings(methods)
	return methods, nil
}
