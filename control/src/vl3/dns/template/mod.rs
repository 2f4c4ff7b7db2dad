//! Templates of names: the part of Go's `text/template` that names need, evaluated on a connection.
//!
//! `NSM_DNS_TEMPLATES` is in Go's notation (cmd-nse-vl3-vpp; sdk, `vl3dns.WithDomainSchemes`). Taken are: fields of the connection and of
//! what is in it, `index`, `target`, `domain`, `and`, `or`, `not`, `eq`, `ne`, pipelines, parentheses, texts, whole numbers, `if … else if … else … end`,
//! comments, and the marks that trim white space. Anything else is refused when the setting is read, not when a client comes: fields
//! and arguments have kinds, and these are checked once.

mod evaluate;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use vwire_proto::nsm::connection::Connection;

use self::parser::Node;

/// Longest template.
const MAX_TEMPLATE: usize = 4096;
/// Most text that an evaluation makes: no name is longer than 253 bytes.
const MAX_TEXT: usize = 1024;

/// A template that is known to make sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

impl Template {
    /// The text that it makes of a connection. A label that is not there is the empty text, as in Go.
    ///
    /// # Errors
    /// What can't be had of this connection (an element behind a list's end, a mechanism that is not there), or that the text grows too long.
    pub fn fill(&self, connection: &Connection) -> Result<String, String> {
        let mut text = String::new();
        evaluate::run(&self.nodes, connection, &mut text)?;
        Ok(text)
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEMPLATE {
            return Err(format!("{} bytes; a template has at most {MAX_TEMPLATE}", text.len()));
        }
        Ok(Self { text: text.to_owned(), nodes: parser::parse(text)? })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
