//! What a template makes of a connection.

use std::borrow::Cow;
use std::collections::BTreeMap;

use vwire_proto::nsm::connection::{Connection, Mechanism, Path, PathSegment};

use super::MAX_TEXT;
use super::parser::{Expr, Function, Node};
use crate::domain;

/// Kinds were checked when the template was read; what is here and does not fit is an error nevertheless, never a panic.
#[derive(Debug, Clone, PartialEq)]
enum Value<'a> {
    Connection(&'a Connection),
    Mechanism(Option<&'a Mechanism>),
    Path(Option<&'a Path>),
    Segments(&'a [PathSegment]),
    Segment(&'a PathSegment),
    Labels(Option<&'a BTreeMap<String, String>>),
    Text(Cow<'a, str>),
    Number(usize),
    Bool(bool),
}

pub(super) fn run(nodes: &[Node], connection: &Connection, text: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(plain) => text.push_str(plain),
            Node::Print(expr) => match value(expr, connection)? {
                Value::Text(printed) => text.push_str(&printed),
                Value::Number(number) => text.push_str(&number.to_string()),
                _ => return Err("not a text".to_owned()),
            },
            Node::If { condition, then, otherwise } => {
                let branch = if is_true(&value(condition, connection)?) { then } else { otherwise };
                run(branch, connection, text)?;
            }
        }
        if text.len() > MAX_TEXT {
            return Err(format!("the name is longer than {MAX_TEXT} bytes"));
        }
    }
    Ok(())
}

fn value<'a>(expr: &'a Expr, connection: &'a Connection) -> Result<Value<'a>, String> {
    match expr {
        Expr::Dot => Ok(Value::Connection(connection)),
        Expr::Text(text) => Ok(Value::Text(Cow::Borrowed(text))),
        Expr::Number(number) => Ok(Value::Number(*number)),
        Expr::Field(of, name) => field(value(of, connection)?, name),
        Expr::Call(function, arguments) => call(*function, arguments, connection),
    }
}

/// An empty text is what Go's maps have for a key that is not there.
fn entry<'a>(labels: Option<&'a BTreeMap<String, String>>, key: &str) -> Value<'a> {
    Value::Text(Cow::Borrowed(labels.and_then(|labels| labels.get(key)).map_or("", String::as_str)))
}

fn field<'a>(of: Value<'a>, name: &str) -> Result<Value<'a>, String> {
    let text = |text: &'a str| Ok(Value::Text(Cow::Borrowed(text)));
    match (of, name) {
        (Value::Connection(connection), "Id") => text(&connection.id),
        (Value::Connection(connection), "NetworkService") => text(&connection.network_service),
        (Value::Connection(connection), "NetworkServiceEndpointName") => {
            text(&connection.network_service_endpoint_name)
        }
        (Value::Connection(connection), "Payload") => text(&connection.payload),
        (Value::Connection(connection), "Labels") => Ok(Value::Labels(Some(&connection.labels))),
        (Value::Connection(connection), "Mechanism") => Ok(Value::Mechanism(connection.mechanism.as_ref())),
        (Value::Connection(connection), "Path") => Ok(Value::Path(connection.path.as_ref())),
        (Value::Mechanism(Some(mechanism)), "Cls") => text(&mechanism.cls),
        (Value::Mechanism(Some(mechanism)), "Type") => text(&mechanism.r#type),
        (Value::Mechanism(Some(mechanism)), "Parameters") => Ok(Value::Labels(Some(&mechanism.parameters))),
        (Value::Path(Some(path)), "PathSegments") => Ok(Value::Segments(&path.path_segments)),
        (Value::Segment(segment), "Name") => text(&segment.name),
        (Value::Segment(segment), "Id") => text(&segment.id),
        (Value::Labels(labels), key) => Ok(entry(labels, key)),
        (Value::Mechanism(None), _) => Err("the connection has no mechanism yet".to_owned()),
        (Value::Path(None), _) => Err("the connection has no path".to_owned()),
        (_, name) => Err(format!("no field {name}")),
    }
}

fn call<'a>(
    function: Function,
    arguments: &'a [Expr],
    connection: &'a Connection,
) -> Result<Value<'a>, String> {
    let mut values = arguments.iter().map(|argument| value(argument, connection));
    let mut next = || values.next().unwrap_or_else(|| Err("an argument is missing".to_owned()));
    match function {
        Function::Index => match (next()?, next()?) {
            (Value::Labels(labels), Value::Text(key)) => Ok(entry(labels, &key)),
            (Value::Segments(segments), Value::Number(at)) => match segments.get(at) {
                Some(segment) => Ok(Value::Segment(segment)),
                None => Err(format!("the path has {} segments, and none of number {at}", segments.len())),
            },
            _ => Err("index of what has no index".to_owned()),
        },
        Function::Target => of_text(next()?, |name| domain::target(name)),
        Function::Domain => of_text(next()?, |name| domain::domain(name).unwrap_or_default()),
        Function::Not => Ok(Value::Bool(!is_true(&next()?))),
        Function::Ne => Ok(Value::Bool(next()? != next()?)),
        Function::Eq => {
            let first = next()?;
            let others: Result<Vec<Value>, String> = values.collect();
            Ok(Value::Bool(others?.contains(&first)))
        }
        // The first that decides, or the last; those behind it are not looked at.
        Function::And | Function::Or => {
            let decides = function == Function::Or;
            let mut last = next()?;
            for value in values {
                if is_true(&last) == decides {
                    break;
                }
                last = value?;
            }
            Ok(last)
        }
    }
}

fn of_text<'a>(name: Value<'a>, part: impl Fn(&str) -> &str) -> Result<Value<'a>, String> {
    match name {
        Value::Text(name) => Ok(Value::Text(Cow::Owned(part(&name).to_owned()))),
        _ => Err("not a text".to_owned()),
    }
}

/// As in Go: what is empty, zero, absent or false is not.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::Text(text) => !text.is_empty(),
        Value::Number(number) => *number != 0,
        Value::Labels(labels) => labels.is_some_and(|labels| !labels.is_empty()),
        Value::Segments(segments) => !segments.is_empty(),
        Value::Mechanism(mechanism) => mechanism.is_some(),
        Value::Path(path) => path.is_some(),
        Value::Connection(_) | Value::Segment(_) => true,
    }
}
