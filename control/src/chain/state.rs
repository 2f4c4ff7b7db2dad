//! What elements remember of one connection.

use std::any::{Any, TypeId};
use std::collections::HashMap;

/// Values by their type: each element keeps a type of its own here.
#[derive(Default)]
pub struct State(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl State {
    /// The value of this type, if one was inserted.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref())
    }

    /// As [`get`](Self::get), to change it.
    pub fn get_mut<T: Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        self.0.get_mut(&TypeId::of::<T>()).and_then(|value| value.downcast_mut())
    }

    /// The value of this type; a new one if there was none.
    pub fn get_or_default<T: Default + Send + Sync + 'static>(&mut self) -> &mut T {
        let value = self.0.entry(TypeId::of::<T>()).or_insert_with(|| Box::<T>::default());
        value.downcast_mut().expect("the key is the value's type")
    }

    /// Keeps a value in place of the one of its type.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// Takes the value of this type.
    pub fn remove<T: Send + Sync + 'static>(&mut self) -> Option<T> {
        self.0.remove(&TypeId::of::<T>()).and_then(|value| value.downcast().ok()).map(|value| *value)
    }

    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_by_type() {
        let mut state = State::default();
        assert!(state.get::<u32>().is_none());
        state.insert(1_u32);
        state.insert("one");
        *state.get_or_default::<u32>() += 1;
        assert_eq!((state.get::<u32>(), state.get::<&str>()), (Some(&2), Some(&"one")));
        assert_eq!(state.remove::<u32>(), Some(2));
        assert!(state.get::<u32>().is_none());
    }
}
