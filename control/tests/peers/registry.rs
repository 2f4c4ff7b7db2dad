//! A Go client of a registry.

use serde_json::Value;

use super::process::Process;

/// The process.
pub struct RegistryClient(pub Process);

impl RegistryClient {
    /// Does "VERB KIND MESSAGE" (see regclient.go) and gives the answer's messages.
    ///
    /// # Errors
    /// The gRPC code and the text of what was refused.
    #[track_caller]
    pub fn call(&mut self, verb: &str, kind: &str, message: &Value) -> Result<Vec<Value>, (String, String)> {
        let answer = self.0.ask(&format!("{verb} {kind} {message}"), &["answer", "failed"]);
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        if answer["event"] == "failed" {
            return Err((text("code"), text("error")));
        }
        Ok(answer["messages"].as_array().cloned().unwrap_or_default())
    }

    /// Begins to watch; what is found is told as "found".
    pub fn watch(&mut self, kind: &str, message: &Value) {
        self.0.tell(&format!("watch {kind} {message}"));
    }
}
