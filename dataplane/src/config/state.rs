//! The lists of the file, `[[port]]` and the others, as the state that they describe.

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::refusal::Refusal;
use super::{domain, take, underlay, value};
use crate::model::{Op, PortName, PortSpec, State, StateError, UnderlaySpec, Xconnect, shown};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawXconnect {
    ports: [PortName; 2],
}

/// The state that all entries together describe.
pub(super) fn state(
    ports: Vec<Spanned<DeValue<'_>>>,
    xconnects: Vec<Spanned<DeValue<'_>>>,
    underlays: Vec<Spanned<DeValue<'_>>>,
    domains: Vec<Spanned<DeValue<'_>>>,
) -> Result<State, Refusal> {
    let mut places = Vec::new();
    let (mut known_ports, mut known_xconnects) = (Vec::new(), Vec::new());
    for entry in ports {
        let span = entry.span();
        let (name, spec) = port(entry)?;
        places.push((name.to_string(), span));
        known_ports.push((name, spec));
    }
    for entry in xconnects {
        let span = entry.span();
        let RawXconnect { ports: [a, b] } = value(entry)?;
        let xconnect = Xconnect::new(a, b).map_err(|error| Refusal::at(span.clone(), error))?;
        places.push((xconnect.to_string(), span));
        known_xconnects.push(xconnect);
    }
    let mut known_underlays: Vec<(PortName, UnderlaySpec)> = Vec::new();
    for entry in underlays {
        let span = entry.span();
        let underlay: underlay::Underlay = value(entry)?;
        let (port, spec, exception) =
            underlay.into_parts().map_err(|error| Refusal::at(span.clone(), error))?;
        if known_underlays.iter().any(|(other, _)| *other == port) {
            let twice = format!("port: {port} has two underlays; give one of them all addresses");
            return Err(Refusal::at(span, twice));
        }
        places.push((format!("underlay {port}"), span.clone()));
        if let Some(xconnect) = exception {
            places.push((xconnect.to_string(), span));
            known_xconnects.push(xconnect);
        }
        known_underlays.push((port, spec));
    }
    let mut routing = Vec::new();
    for entry in domains {
        let span = entry.span();
        let domain: domain::Domain = value(entry)?;
        let (ops, subjects) = domain.into_ops().map_err(|error| Refusal::at(span.clone(), error))?;
        places.extend(subjects.into_iter().map(|subject| (subject, span.clone())));
        routing.extend::<Vec<Op>>(ops);
    }
    let ports_and_xconnects = State::with_underlays(known_ports, known_underlays, known_xconnects);
    ports_and_xconnects.and_then(|state| state.after(routing)).map_err(|error| {
        let subject = subject(&error);
        // The last entry of this name: of two ports of one name, the second is the one too many.
        let place = places.iter().rev().find(|(name, _)| Some(name) == subject.as_ref());
        Refusal { span: place.map(|(_, span)| span.clone()), reason: error.to_string() }
    })
}

/// The entry that an error is about.
fn subject(error: &StateError) -> Option<String> {
    match error {
        StateError::Twice(port) | StateError::Contested { second: port, .. } => Some(port.to_string()),
        StateError::NoSuchPort { xconnect, .. } | StateError::Joined { second: xconnect, .. } => {
            Some(xconnect.to_string())
        }
        StateError::Routing { subject, .. } | StateError::Underlay { subject, .. } => Some(subject.clone()),
        StateError::Modes(xconnect) | StateError::Relay(xconnect, _) => Some(xconnect.to_string()),
        StateError::TooMany(_)
        | StateError::Notes(_)
        | StateError::TooManyRoutes(_)
        | StateError::NotFound(_) => None,
    }
}

/// One `[[port]]`: its name and kind, and the rest as the kind wants it.
fn port(entry: Spanned<DeValue<'_>>) -> Result<(PortName, PortSpec), Refusal> {
    let span = entry.span();
    let DeValue::Table(mut table) = entry.into_inner() else {
        return Err(Refusal::at(span, "a port is a table"));
    };
    let needed = |key: &str| Refusal::at(span.clone(), format!("missing field `{key}`"));
    let name: PortName = value(take(&mut table, "name").ok_or_else(|| needed("name"))?)?;
    let kind = take(&mut table, "kind").ok_or_else(|| needed("kind"))?;
    let (kind_span, kind): (_, String) = (kind.span(), value(kind)?);
    let rest = Spanned::new(span.clone(), DeValue::Table(table));
    let spec = match kind.as_str() {
        "memif" => PortSpec::Memif(value(rest)?),
        "kernel" => PortSpec::Kernel(value(rest)?),
        "af_xdp" => PortSpec::AfXdp(value(rest)?),
        "vxlan" => PortSpec::Vxlan(value(rest)?),
        "pipe" => PortSpec::Pipe(value(rest)?),
        "dpdk" => PortSpec::Dpdk(value(rest)?),
        other => {
            let said = shown(other);
            return Err(Refusal::at(
                kind_span,
                format!("kind is memif, kernel, af_xdp, vxlan, pipe or dpdk, not {said}"),
            ));
        }
    };
    if spec.needs().next().is_some() {
        return Err(Refusal::at(
            span,
            "inode:// names a descriptor sent over the API; a file can't send one",
        ));
    }
    Ok((name, spec))
}
