//! A template's text in pieces.

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// As it is.
    Text(String),
    /// What is between `{{` and `}}`.
    Action(Vec<Token>),
}

/// A piece of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `if`, `index`, …
    Word(String),
    /// `.Labels.podName`: the names; none for a dot alone. True if white space is before it: `x .A` has two operands, `(x).A` one.
    Field(Vec<String>, bool),
    /// In quotes of either kind.
    Text(String),
    Number(usize),
    Open,
    Close,
    Pipe,
}

/// Cuts a template.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    let mut trim = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let (trims_before, action) = match after.strip_prefix('-') {
            Some(action) if action.starts_with(char::is_whitespace) => (true, action),
            _ => (false, after),
        };
        push_text(&mut pieces, before, trim, trims_before);
        (trim, rest) = match action.trim_start().strip_prefix("/*") {
            Some(comment) => end_of_comment(comment)?,
            None => {
                let (tokens, trims_after, rest) = action_of(action)?;
                pieces.push(Piece::Action(tokens));
                (trims_after, rest)
            }
        };
    }
    push_text(&mut pieces, rest, trim, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, mut text: &str, trim_start: bool, trim_end: bool) {
    if trim_start {
        text = text.trim_start();
    }
    if trim_end {
        text = text.trim_end();
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Whether what follows is trimmed, and what follows.
fn end_of_comment(comment: &str) -> Result<(bool, &str), String> {
    let (_, after) = comment.split_once("*/").ok_or("a comment without its end, */")?;
    match end_of_action(after) {
        Some(end) => Ok(end),
        None => Err("a comment is an action of its own: {{/* … */}}".to_owned()),
    }
}

/// `}}` or ` -}}`, after white space.
fn end_of_action(text: &str) -> Option<(bool, &str)> {
    let trimmed = text.trim_start();
    if let Some(rest) = trimmed.strip_prefix("}}") {
        return Some((false, rest));
    }
    let marked = trimmed.len() < text.len();
    trimmed.strip_prefix("-}}").filter(|_| marked).map(|rest| (true, rest))
}

fn action_of(mut rest: &str) -> Result<(Vec<Token>, bool, &str), String> {
    let mut tokens = Vec::new();
    loop {
        if let Some((trims, after)) = end_of_action(rest) {
            return Ok((tokens, trims, after));
        }
        let trimmed = rest.trim_start();
        let spaced = trimmed.len() < rest.len() || tokens.is_empty();
        let (token, after) = token(trimmed, spaced)?;
        tokens.push(token);
        rest = after;
    }
}

fn token(text: &str, spaced: bool) -> Result<(Token, &str), String> {
    let mut chars = text.chars();
    let first = chars.next().ok_or("an action without its end, }}")?;
    let rest = chars.as_str();
    match first {
        '(' => Ok((Token::Open, rest)),
        ')' => Ok((Token::Close, rest)),
        '|' => Ok((Token::Pipe, rest)),
        '"' => quoted(rest),
        '`' => {
            let (raw, rest) = rest.split_once('`').ok_or("a text without its end, `")?;
            Ok((Token::Text(raw.to_owned()), rest))
        }
        '.' => field(text, spaced),
        '0'..='9' => {
            let (digits, rest) = split_while(text, |c| c.is_alphanumeric() || c == '_' || c == '.');
            let number = digits.parse().map_err(|_| format!("{digits} is not a whole number"))?;
            Ok((Token::Number(number), rest))
        }
        first if is_letter(first) => {
            let (word, rest) = split_while(text, is_letter);
            Ok((Token::Word(word.to_owned()), rest))
        }
        other => Err(format!("{other:?} is not known in an action")),
    }
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn split_while(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

/// A text in double quotes, with the escapes of Go that stand for one character each.
fn quoted(text: &str) -> Result<(Token, &str), String> {
    let (mut value, mut chars) = (String::new(), text.chars());
    loop {
        match chars.next().ok_or("a text without its end, \"")? {
            '"' => return Ok((Token::Text(value), chars.as_str())),
            '\\' => match chars.next() {
                Some(same @ ('"' | '\\')) => value.push(same),
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                other => return Err(format!("\\{} is not known in a text", other.unwrap_or(' '))),
            },
            other => value.push(other),
        }
    }
}

/// `.`, `.A`, `.A.B`: up to where a name does not follow a dot.
fn field(mut text: &str, spaced: bool) -> Result<(Token, &str), String> {
    let mut names = Vec::new();
    while let Some(after) = text.strip_prefix('.') {
        let (name, rest) = split_while(after, is_letter);
        if name.is_empty() && names.is_empty() {
            return Ok((Token::Field(names, spaced), rest));
        }
        if name.is_empty() {
            return Err(format!("a name is missing behind .{}.", names.join(".")));
        }
        names.push(name.to_owned());
        text = rest;
    }
    Ok((Token::Field(names, spaced), text))
}
