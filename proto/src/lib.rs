//! What two processes must agree on, and only that: NSM's API ([`nsm`], and what is left of v0.2 in [`nsm02`]), SPIFFE's Workload API ([`workload`]), the API between
//! control and packet engine ([`dataplane::v1`]), the layout of the statistics segment and the names of drop reasons.

pub mod stats;

/// The packet engine's API.
pub mod dataplane {
    /// Version 1: messages, [`dataplane_client::DataplaneClient`](v1::dataplane_client::DataplaneClient) and
    /// the server's trait. The fields' meaning, units and limits are in
    /// `proto/vwire/dataplane/v1/dataplane.proto`.
    pub mod v1 {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto file where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("vwire.dataplane.v1");

        /// The encoded `FileDescriptorSet` of this package, for gRPC reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dataplane_v1.bin"));
    }
}

/// The NSM v1 API. Three packages of it are one Go package there, and so they are one module here.
pub mod nsm {
    /// The messages and services of the packages `networkservice` and `connection`.
    pub mod networkservice {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto files where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("networkservice");
    }

    /// Package `connection`: a vWire as the hops along it tell each other.
    pub mod connection {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto files where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("connection");
    }

    /// Package `connectioncontext`: addresses, routes, name servers.
    pub mod connectioncontext {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto files where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("connectioncontext");
    }

    /// Package `registry`: who offers what, and where.
    pub mod registry {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto files where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("registry");
    }

    /// Package `ipam`: prefixes for the endpoints of a virtual network.
    pub mod ipam {
        #![expect(
            missing_docs,
            reason = "generated; documented in the .proto files where comments are possible"
        )]
        #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
        tonic::include_proto!("ipam");
    }

    /// The encoded `FileDescriptorSet` of these packages, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nsm.bin"));
}

/// The registry calls of NSM before v1 (v0.2): package `registry`, as v1's is called, with other messages and methods.
pub mod nsm02 {
    #![expect(missing_docs, reason = "generated; documented in the .proto file where comments are possible")]
    #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
    include!(concat!(env!("OUT_DIR"), "/nsm02/registry.rs"));

    /// The encoded `FileDescriptorSet` of this package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nsm02/nsm02.bin"));
}

/// The SPIFFE Workload API.
pub mod workload {
    #![expect(missing_docs, reason = "generated; documented in the .proto file where comments are possible")]
    #![allow(clippy::doc_lazy_continuation, clippy::too_long_first_doc_paragraph)]
    tonic::include_proto!("_");

    /// The encoded `FileDescriptorSet`, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));
}
