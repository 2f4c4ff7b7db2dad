//! Asking processes by their admin ports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::transport::Target;

/// How long a process has to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read: 1,000 connections are about 2 MB.
const MAX_ANSWER: usize = 256 << 20;

/// What names of admin sockets begin with.
const ROLES: [&str; 10] =
    ["ca", "forwarder", "node", "nsc", "nse", "nsmgr", "nsmrs", "proxy", "registry", "vl3"];
/// How deep below the directory admin sockets are: lab/NAME/admin.
const DEPTH: usize = 4;

/// Why a process was not heard.
#[derive(Debug, thiserror::Error)]
#[error("{target}: {reason}")]
pub struct AskError {
    /// Its admin port.
    pub target: Target,
    /// What went wrong.
    pub reason: String,
}

/// A process's admin port.
#[derive(Debug, Clone)]
pub struct AdminClient(pub Target);

impl AdminClient {
    /// Reads what is at `path`.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        let answer = self.ask("GET", path, String::new()).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| self.error(format!("not an admin port of vwire: {error}")))
    }

    /// Reads the text at `path`, such as `/metrics`.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn text(&self, path: &str) -> Result<String, AskError> {
        let answer = self.ask("GET", path, String::new()).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Sends `body` to `path`, and gives the answer's text.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn put(&self, path: &str, body: String) -> Result<String, AskError> {
        let answer = self.ask("PUT", path, body).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn error(&self, reason: impl ToString) -> AskError {
        AskError { target: self.0.clone(), reason: reason.to_string() }
    }

    async fn ask(&self, method: &str, path: &str, body: String) -> Result<Bytes, AskError> {
        let asked = async {
            match &self.0 {
                Target::Unix(socket) => {
                    let stream = UnixStream::connect(socket).await.map_err(|error| self.error(error))?;
                    self.exchange(stream, method, path, body).await
                }
                Target::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(|error| self.error(error))?;
                    self.exchange(stream, method, path, body).await
                }
                Target::File { .. } => Err(self.error("an admin port is unix:///path or host:port")),
            }
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.unwrap_or_else(|_| Err(self.error(format!("no answer within {PATIENCE:?}"))))
    }

    async fn exchange<S>(&self, stream: S, method: &str, path: &str, body: String) -> Result<Bytes, AskError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = Request::builder().method(method).uri(path).header("host", "vwire");
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| self.error(error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.error(error))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| self.error(error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.error(error))?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body);
        }
        Err(self.error(format!("{status}: {}", String::from_utf8_lossy(&body).trim())))
    }
}

/// Which processes a verb asks.
#[derive(Debug, Clone, clap::Args)]
pub struct Where {
    /// An admin port to ask, unix:///path or host:port; can be given more than once. All sockets below --run if it is left out.
    #[arg(long, value_name = "URL")]
    admin: Vec<Target>,
    /// Where admin sockets are looked for.
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/vwire")]
    run: PathBuf,
}

impl Where {
    /// Asks all at once for what is at `path`. What listens there and is no admin port of ours is left out, unless it was named.
    ///
    /// # Errors
    /// [`AskError`] of the first that was named and did not answer.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<(Target, T)>, AskError> {
        let named = !self.admin.is_empty();
        let targets = if named { self.admin.clone() } else { sockets(&self.run) };
        let ask = |target: Target| async move { (target.clone(), AdminClient(target).get::<T>(path).await) };
        let mut answers = Vec::new();
        for (target, answer) in join_all(targets.into_iter().map(ask)).await {
            match answer {
                Ok(answer) => answers.push((target, answer)),
                Err(error) if named => return Err(error),
                Err(_) => {}
            }
        }
        Ok(answers)
    }

    /// Where it was looked, for an error.
    pub fn place(&self) -> String {
        if self.admin.is_empty() {
            self.run.display().to_string()
        } else {
            "the admin ports named".to_owned()
        }
    }
}

/// The admin sockets in `directory` and in folders called `admin` below it, sorted by path. Other sockets are left alone: whoever
/// listens there would be called in a language that it does not speak.
fn sockets(directory: &Path) -> Vec<Target> {
    let mut found = Vec::new();
    collect(directory, true, DEPTH, &mut found);
    found.sort();
    found.into_iter().map(Target::Unix).collect()
}

fn collect(directory: &Path, admin: bool, depth: usize, found: &mut Vec<PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let (Ok(kind), name) = (entry.file_type(), entry.file_name()) else { continue };
        let name = name.to_string_lossy();
        let role = ROLES.iter().any(|role| name.strip_prefix(role).is_some_and(|rest| rest.starts_with('-')));
        if kind.is_socket() && admin && role && name.ends_with(".sock") {
            found.push(entry.path());
        } else if kind.is_dir() && depth > 0 {
            collect(&entry.path(), name == "admin", depth - 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_sockets_are_found_and_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let admin = dir.path().join("lab/two/admin");
        std::fs::create_dir_all(&admin).unwrap();
        let paths = [
            dir.path().join("nsmgr-a.sock"),
            admin.join("nsc-b.sock"),
            admin.join("vl3-ipam-b.sock"),
            dir.path().join("dataplane.sock"),
            dir.path().join("lab/two/nsmgr-a.sock"),
            admin.join("other.sock"),
        ];
        let _sockets: Vec<_> =
            paths.iter().map(|path| std::os::unix::net::UnixListener::bind(path).unwrap()).collect();
        let found = sockets(dir.path());
        let expected = [1, 2, 0].map(|one: usize| Target::Unix(paths[one].clone()));
        assert_eq!(found, expected);
    }
}
