//! What two vwire processes must agree on, and only that: the API between control and packet engine
//! ([`dataplane::v1`]), the layout of the statistics segment and the names of drop reasons.

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
