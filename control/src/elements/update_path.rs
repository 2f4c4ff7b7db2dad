//! `updatepath`: where we are in a connection's path.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Path, PathSegment};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next, Origin};

/// Puts a connection into our coordinates on its way in, with our segment at the path's index, and its answer back into the
/// caller's on the way out. Runs that the role itself starts are in our coordinates from the start.
pub struct UpdatePath {
    name: Arc<str>,
}

impl UpdatePath {
    /// For the role of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into() }
    }
}

#[async_trait]
impl Element for UpdatePath {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if matches!(call.origin, Origin::Internal(_)) {
            return next.request(call, request).await;
        }
        let callers = enter(request.connection.get_or_insert_default(), &self.name)?;
        let mut connection = next.request(call, request).await?;
        leave(&mut connection, callers)?;
        Ok(connection)
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if matches!(call.origin, Origin::Peer { .. }) {
            enter(&mut connection, &self.name)?;
        }
        next.close(call, connection).await
    }
}

/// Moves a connection into the coordinates of the hop `name`; returns the caller's index.
///
/// The caller puts `connection.id` to the id of its own segment, and the index to that segment. A segment after it that has
/// our name keeps its id: this is a refresh. One of another name becomes ours with a new id: the caller has selected us anew; what
/// follows is kept, for the next hop may be the same.
///
/// # Errors
/// INVALID_ARGUMENT if index, ids and segments don't agree; the connection is then as it was.
pub fn enter(connection: &mut Connection, name: &str) -> Result<u32, Status> {
    let path = connection.path.get_or_insert_default();
    if path.path_segments.is_empty() {
        if connection.id.is_empty() {
            connection.id = new_id();
        }
        path.index = 0;
        path.path_segments.push(segment(name, connection.id.clone()));
        return Ok(0);
    }
    let index = path.index as usize;
    let segments = path.path_segments.len();
    let Some(callers) = path.path_segments.get(index) else {
        let reason = format!("connection.path.index: {index} is not the index of one of {segments} segments");
        return Err(Status::invalid_argument(reason));
    };
    if callers.name == name {
        connection.id.clone_from(&callers.id);
        return Ok(path.index);
    }
    if callers.id != connection.id {
        let reason = format!(
            "connection.id: {:?} is not the id of segment {index} of the path, {:?}",
            connection.id, callers.id
        );
        return Err(Status::invalid_argument(reason));
    }
    connection.id = own_segment(path, index + 1, name);
    path.index += 1;
    Ok(path.index - 1)
}

/// Makes the segment at `index`, which may be the one after the last, ours; returns its id.
fn own_segment(path: &mut Path, index: usize, name: &str) -> String {
    match path.path_segments.get_mut(index) {
        Some(ours) if ours.name == name => ours.id.clone(),
        Some(others) => {
            name.clone_into(&mut others.name);
            others.id = new_id();
            others.id.clone()
        }
        None => {
            let id = new_id();
            path.path_segments.push(segment(name, id.clone()));
            id
        }
    }
}

/// Puts an answer into the coordinates of the segment `callers`.
///
/// # Errors
/// INTERNAL if there is no such segment any more.
pub fn leave(connection: &mut Connection, callers: u32) -> Result<(), Status> {
    let path = connection.path.get_or_insert_default();
    let Some(segment) = path.path_segments.get(callers as usize) else {
        return Err(Status::internal(format!("the answer's path has lost segment {callers}, the caller's")));
    };
    connection.id.clone_from(&segment.id);
    path.index = callers;
    Ok(())
}

fn segment(name: &str, id: String) -> PathSegment {
    PathSegment { name: name.to_owned(), id, ..Default::default() }
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn connection(id: &str, index: u32, segments: &[(&str, &str)]) -> Connection {
        let path_segments = segments.iter().map(|(name, id)| segment(name, (*id).to_owned())).collect();
        Connection { id: id.to_owned(), path: Some(Path { index, path_segments }), ..Default::default() }
    }

    fn segments(connection: &Connection) -> Vec<(&str, &str)> {
        let path = connection.path.as_ref().unwrap();
        path.path_segments.iter().map(|one| (one.name.as_str(), one.id.as_str())).collect()
    }

    #[test]
    fn a_new_hop_appends_itself_and_gives_the_answer_back_in_the_callers_coordinates() {
        let mut one = connection("nsc-0", 0, &[("nsc", "nsc-0")]);
        assert_eq!(enter(&mut one, "nsmgr").unwrap(), 0);
        assert_eq!(one.path.as_ref().unwrap().index, 1);
        assert_eq!(segments(&one), [("nsc", "nsc-0"), ("nsmgr", one.id.as_str())]);
        assert_eq!(uuid::Uuid::parse_str(&one.id).unwrap().get_version_num(), 4);
        leave(&mut one, 0).unwrap();
        assert_eq!((one.id.as_str(), one.path.unwrap().index), ("nsc-0", 0));
    }

    #[test]
    fn a_refresh_keeps_ids_and_a_reselection_changes_one() {
        let path = [("nsc", "nsc-0"), ("nsmgr", "m"), ("fwd", "f"), ("nse", "e")];
        let mut refresh = connection("m", 1, &path);
        assert_eq!(enter(&mut refresh, "fwd").unwrap(), 1);
        assert_eq!((refresh.id.as_str(), segments(&refresh)), ("f", path.to_vec()));

        let mut other = connection("m", 1, &path);
        enter(&mut other, "fwd-2").unwrap();
        let id = other.id.clone();
        assert_ne!(id, "f");
        assert_eq!(segments(&other), [path[0], path[1], ("fwd-2", id.as_str()), path[3]]);
    }

    #[test]
    fn a_retry_from_the_same_name_stays_where_it_is() {
        let mut own = connection("", 1, &[("nsc", "nsc-0"), ("nsmgr", "m")]);
        assert_eq!(enter(&mut own, "nsmgr").unwrap(), 1);
        assert_eq!(own.id, "m");
    }

    #[test]
    fn without_a_path_we_are_its_beginning() {
        let mut given = Connection { id: "mine".into(), ..Default::default() };
        assert_eq!(enter(&mut given, "nse").unwrap(), 0);
        assert_eq!(segments(&given), [("nse", "mine")]);
        let mut bare = Connection::default();
        enter(&mut bare, "nse").unwrap();
        assert!(!bare.id.is_empty());
    }

    #[test]
    fn what_does_not_agree_is_refused_and_left_as_it_was() {
        for bad in [connection("x", 0, &[("nsc", "nsc-0")]), connection("nsc-0", 1, &[("nsc", "nsc-0")])] {
            let mut tried = bad.clone();
            let status = enter(&mut tried, "nsmgr").unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with("connection."), "{status}");
            assert_eq!(tried, bad);
        }
    }

    proptest! {
        #[test]
        fn entering_and_leaving_any_path_restores_the_caller(
            names in proptest::collection::vec("[abc]", 0..6),
            index in 0u32..8,
            name in "[abc]",
            right_id in any::<bool>(),
        ) {
            let ids: Vec<String> = (0..names.len()).map(|i| format!("id-{i}")).collect();
            let list: Vec<(&str, &str)> =
                names.iter().zip(&ids).map(|(name, id)| (name.as_str(), id.as_str())).collect();
            let id = ids.get(index as usize).filter(|_| right_id).map_or("wrong", String::as_str);
            let before = connection(id, index, &list);
            let mut after = before.clone();
            let Ok(callers) = enter(&mut after, &name) else {
                prop_assert_eq!(&after, &before);
                return Ok(());
            };
            let path = after.path.clone().unwrap();
            prop_assert_eq!(&path.path_segments[path.index as usize].name, &name);
            prop_assert_eq!(&path.path_segments[path.index as usize].id, &after.id);
            prop_assert!(path.index == callers || path.index == callers + 1);
            prop_assert!(path.path_segments.len() <= list.len().max(1) + usize::from(!list.is_empty()));
            // Everything but our own segment is as it was.
            for (i, one) in before.path.unwrap().path_segments.iter().enumerate() {
                if i != path.index as usize {
                    prop_assert_eq!(one, &path.path_segments[i]);
                }
            }
            // Entering again, as a refresh does, changes nothing.
            leave(&mut after, callers).unwrap();
            let mut again = after.clone();
            prop_assert_eq!(enter(&mut again, &name).unwrap(), callers);
            prop_assert_eq!(again.path.unwrap(), path);
        }
    }
}
