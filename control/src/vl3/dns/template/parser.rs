//! What a template says: pieces put together, and checked for what they are.

use std::collections::VecDeque;

use super::lexer::{Piece, Token, pieces};

/// Deepest nesting of parentheses and of `if`s.
const MAX_DEPTH: usize = 32;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Expr),
    If { condition: Expr, then: Vec<Node>, otherwise: Vec<Node> },
}

/// What has a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// The connection.
    Dot,
    Text(String),
    Number(usize),
    Field(Box<Expr>, String),
    Call(Function, Vec<Expr>),
}

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Index,
    Target,
    Domain,
    And,
    Or,
    Not,
    Eq,
    Ne,
}

/// What kind of value something has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection,
    Mechanism,
    Path,
    Segments,
    Segment,
    Labels,
    Text,
    Number,
    Bool,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "the connection",
            Self::Mechanism => "a mechanism",
            Self::Path => "a path",
            Self::Segments => "a list of path segments",
            Self::Segment => "a path segment",
            Self::Labels => "a map",
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Bool => "a truth value",
        }
    }

    /// Its fields, by the names of Go's structs.
    fn fields(self) -> &'static [(&'static str, Kind)] {
        match self {
            Self::Connection => &[
                ("Id", Self::Text),
                ("NetworkService", Self::Text),
                ("NetworkServiceEndpointName", Self::Text),
                ("Payload", Self::Text),
                ("Labels", Self::Labels),
                ("Mechanism", Self::Mechanism),
                ("Path", Self::Path),
            ],
            Self::Mechanism => &[("Cls", Self::Text), ("Type", Self::Text), ("Parameters", Self::Labels)],
            Self::Path => &[("PathSegments", Self::Segments)],
            Self::Segment => &[("Name", Self::Text), ("Id", Self::Text)],
            _ => &[],
        }
    }
}

impl Function {
    fn of(word: &str) -> Result<Self, String> {
        match word {
            "index" => Ok(Self::Index),
            "target" => Ok(Self::Target),
            "domain" => Ok(Self::Domain),
            "and" => Ok(Self::And),
            "or" => Ok(Self::Or),
            "not" => Ok(Self::Not),
            "eq" => Ok(Self::Eq),
            "ne" => Ok(Self::Ne),
            other => Err(format!(
                "{other:?} is not known here; there are index, target, domain, and, or, not, eq, ne, if"
            )),
        }
    }
}

/// Reads a template.
pub(super) fn parse(template: &str) -> Result<Vec<Node>, String> {
    let mut pieces = pieces(template)?.into();
    let (nodes, end) = nodes(&mut pieces, 0)?;
    match end {
        Until::Template => Ok(nodes),
        Until::Else(_) => Err("an else without its if".to_owned()),
        Until::Closed => Err("an end without its if".to_owned()),
    }
}

/// What ended a list of nodes.
enum Until {
    Template,
    /// With what is behind it: nothing, or an `if`.
    Else(Vec<Token>),
    Closed,
}

fn nodes(pieces: &mut VecDeque<Piece>, depth: usize) -> Result<(Vec<Node>, Until), String> {
    if depth > MAX_DEPTH {
        return Err(format!("ifs within ifs, more than {MAX_DEPTH} deep"));
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.pop_front() {
        let mut tokens = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        match tokens.first() {
            Some(Token::Word(word)) if word == "if" => {
                nodes.push(condition(&tokens.split_off(1), pieces, depth)?)
            }
            Some(Token::Word(word)) if word == "else" => {
                return Ok((nodes, Until::Else(tokens.split_off(1))));
            }
            Some(Token::Word(word)) if word == "end" && tokens.len() == 1 => {
                return Ok((nodes, Until::Closed));
            }
            _ => {
                let (expr, kind) = expression(&tokens)?;
                match kind {
                    Kind::Text | Kind::Number => nodes.push(Node::Print(expr)),
                    other => return Err(format!("{} can't be part of a name", other.name())),
                }
            }
        }
    }
    Ok((nodes, Until::Template))
}

fn condition(tokens: &[Token], pieces: &mut VecDeque<Piece>, depth: usize) -> Result<Node, String> {
    let (condition, _) = expression(tokens)?;
    let (then, end) = nodes(pieces, depth + 1)?;
    let otherwise = match end {
        Until::Closed => Vec::new(),
        Until::Template => return Err("an if without its end".to_owned()),
        Until::Else(tokens) => match tokens.split_first() {
            None => match nodes(pieces, depth + 1)? {
                (nodes, Until::Closed) => nodes,
                (_, Until::Template) => return Err("an else without its end".to_owned()),
                (_, Until::Else(_)) => return Err("an else behind an else".to_owned()),
            },
            // The end of the inner if is that of the outer one, too.
            Some((Token::Word(word), rest)) if word == "if" => {
                vec![self::condition(rest, pieces, depth + 1)?]
            }
            Some(_) => return Err("behind an else there may be an if, and nothing else".to_owned()),
        },
    };
    Ok(Node::If { condition, then, otherwise })
}

fn expression(tokens: &[Token]) -> Result<(Expr, Kind), String> {
    let mut reader = Reader { tokens, depth: 0 };
    let found = reader.pipeline()?;
    match reader.tokens.first() {
        None => Ok(found),
        Some(_) => Err("a ) without its (".to_owned()),
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    /// Commands with | between them: each gets what is before it as its last argument.
    fn pipeline(&mut self) -> Result<(Expr, Kind), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("parentheses within parentheses, more than {MAX_DEPTH} deep"));
        }
        let mut value = self.command(None)?;
        while self.tokens.first() == Some(&Token::Pipe) {
            self.next();
            value = self.command(Some(value))?;
        }
        self.depth -= 1;
        Ok(value)
    }

    /// A function with its arguments, or one operand.
    fn command(&mut self, last: Option<(Expr, Kind)>) -> Result<(Expr, Kind), String> {
        if let Some(Token::Word(word)) = self.tokens.first() {
            let function = Function::of(word)?;
            self.next();
            let mut arguments = Vec::new();
            while !matches!(self.tokens.first(), None | Some(Token::Close | Token::Pipe)) {
                arguments.push(self.operand()?);
            }
            arguments.extend(last);
            return call(function, arguments);
        }
        let value = self.operand()?;
        match (self.tokens.first(), last) {
            (None | Some(Token::Close | Token::Pipe), None) => Ok(value),
            _ => Err("what is no function has no arguments".to_owned()),
        }
    }

    fn operand(&mut self) -> Result<(Expr, Kind), String> {
        let mut value = match self.next() {
            Some(Token::Field(names, _)) => chain((Expr::Dot, Kind::Connection), names)?,
            Some(Token::Text(text)) => (Expr::Text(text), Kind::Text),
            Some(Token::Number(number)) => (Expr::Number(number), Kind::Number),
            Some(Token::Open) => {
                let inner = self.pipeline()?;
                match self.next() {
                    Some(Token::Close) => inner,
                    _ => return Err("a ( without its )".to_owned()),
                }
            }
            Some(Token::Word(word)) => {
                Function::of(&word)?;
                return Err(format!("{word} with its arguments has to be in parentheses here"));
            }
            Some(Token::Close) | Some(Token::Pipe) | None => return Err("a value is missing".to_owned()),
        };
        // Without white space before it a field is one of what is before it.
        while let Some(Token::Field(names, false)) = self.tokens.first() {
            value = chain(value, names.clone())?;
            self.next();
        }
        Ok(value)
    }
}

fn chain(mut value: (Expr, Kind), names: Vec<String>) -> Result<(Expr, Kind), String> {
    for name in names {
        let kind = match value.1 {
            Kind::Labels => Kind::Text,
            kind => {
                let known = kind.fields();
                let found = known.iter().find(|(field, _)| *field == name).map(|(_, kind)| *kind);
                found.ok_or_else(|| {
                    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    match names.is_empty() {
                        true => format!(".{name}: {} has no fields", kind.name()),
                        false => format!(".{name}: {} has {}", kind.name(), names.join(", ")),
                    }
                })?
            }
        };
        value = (Expr::Field(Box::new(value.0), name), kind);
    }
    Ok(value)
}

fn call(function: Function, arguments: Vec<(Expr, Kind)>) -> Result<(Expr, Kind), String> {
    let kinds: Vec<Kind> = arguments.iter().map(|(_, kind)| *kind).collect();
    let kind = match (function, kinds.as_slice()) {
        (Function::Index, [Kind::Labels, Kind::Text]) => Kind::Text,
        (Function::Index, [Kind::Segments, Kind::Number]) => Kind::Segment,
        (Function::Index, _) => return Err("index takes a map and a text, or a list and a number".to_owned()),
        (Function::Target | Function::Domain, [Kind::Text]) => Kind::Text,
        (Function::Target | Function::Domain, _) => {
            return Err("target and domain take one text, such as .NetworkService".to_owned());
        }
        (Function::And | Function::Or, [first, others @ ..]) if others.iter().all(|kind| kind == first) => {
            *first
        }
        (Function::And | Function::Or, _) => return Err("and, or take values of one kind".to_owned()),
        (Function::Not, [_]) => Kind::Bool,
        (Function::Not, _) => return Err("not takes one value".to_owned()),
        (Function::Eq, [first @ (Kind::Text | Kind::Number), others @ ..])
            if !others.is_empty() && others.iter().all(|kind| kind == first) =>
        {
            Kind::Bool
        }
        (Function::Ne, [Kind::Text, Kind::Text] | [Kind::Number, Kind::Number]) => Kind::Bool,
        (Function::Eq | Function::Ne, _) => {
            return Err("eq and ne take texts or numbers; ne takes two".to_owned());
        }
    };
    Ok((Expr::Call(function, arguments.into_iter().map(|(expr, _)| expr).collect()), kind))
}
