// None of it is used: the registry's messages need no more than protobuf.
module github.com/networkservicemesh/networkservicemesh/pkg

go 1.13
