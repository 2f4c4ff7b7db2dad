//! `vwire hello`: the workload of the helloworld example, which answers as that of the first vL3 example did.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use super::{VerbError, print};

/// `vwire hello`
#[derive(Debug, Clone, clap::Args)]
pub struct HelloArgs {
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:5000")]
    listen: SocketAddr,
    /// What it says it is; the host's name if left out.
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Of which version it says it is.
    #[arg(long, value_name = "VERSION", default_value = "v1")]
    version: String,
}

impl HelloArgs {
    /// Serves until the process is ended.
    ///
    /// # Errors
    /// [`VerbError::Serve`] if the address can't be had.
    pub async fn run(&self) -> Result<(), VerbError> {
        let failed = |error| VerbError::Serve { address: self.listen, error };
        let listener = TcpListener::bind(self.listen).await.map_err(failed)?;
        print(&format!("listening at {}\n", listener.local_addr().map_err(failed)?))?;
        axum::serve(listener, self.answers()).await.map_err(failed)
    }

    fn answers(&self) -> Router {
        let host =
            || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let instance = self.instance.clone().unwrap_or_else(host);
        let answer = format!("Hello version: {}, instance: {instance}\n", self.version);
        Router::new().route("/hello", get(async move || answer.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn it_answers_as_the_first_one_did() {
        let args = HelloArgs {
            listen: "127.0.0.1:0".parse().unwrap(),
            instance: Some("helloworld-v1-fc4998b76-tm6tq".into()),
            version: "v1".into(),
        };
        let listener = TcpListener::bind(args.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, args.answers()).into_future());
        let get = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = get("/hello").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("Hello version: v1, instance: helloworld-v1-fc4998b76-tm6tq\n"), "{answer}");
        assert!(get("/").await.starts_with("HTTP/1.1 404"));
        let taken = HelloArgs { listen: address, ..args };
        let error = taken.run().await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
