//! A list that grows at its end while others read it, without a lock: what was given a position keeps it for ever.

use std::ops::Index;
use std::sync::OnceLock;

#[derive(Debug)]
pub struct Grow<T> {
    /// Filled from the front.
    places: Box<[OnceLock<T>]>,
}

impl<T> Grow<T> {
    /// With room for so many.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { places: (0..capacity).map(|_| OnceLock::new()).collect() }
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.get(0).is_none()
    }

    /// How many more have room.
    pub fn room(&self) -> usize {
        self.places.len() - self.len()
    }

    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.places.get(at)?.get()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().map_while(OnceLock::get)
    }

    /// Returns its position, or the value when there is no room.
    pub fn push(&self, value: T) -> Result<usize, T> {
        let mut value = value;
        for (at, place) in self.places.iter().enumerate() {
            match place.set(value) {
                Ok(()) => return Ok(at),
                Err(back) => value = back,
            }
        }
        Err(value)
    }
}

impl<T> Index<usize> for Grow<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        match self.get(at) {
            Some(value) => value,
            None => panic!("there is nothing at position {at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_it_stays_where_it_is_until_it_is_full() {
        let list = Grow::with_capacity(3);
        assert!(list.is_empty());
        assert_eq!((list.push("a"), list.push("b")), (Ok(0), Ok(1)));
        let first = &list[0];
        assert_eq!(list.push("c"), Ok(2));
        assert_eq!(list.push("d"), Err("d"));
        assert_eq!((*first, list.get(1), list.get(3)), ("a", Some(&"b"), None));
        assert_eq!((list.len(), list.room()), (3, 0));
        assert_eq!(list.iter().copied().collect::<String>(), "abc");
    }

    #[test]
    fn readers_see_a_prefix_while_several_grow_it() {
        let list = Grow::with_capacity(2000);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let list = &list;
                scope.spawn(move || {
                    for n in 0..500 {
                        let at = list.push(part * 500 + n).expect("room");
                        assert_eq!(list[at], part * 500 + n);
                        assert!(list.len() > at);
                    }
                });
            }
        });
        let mut all: Vec<i32> = list.iter().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..2000).collect::<Vec<_>>());
    }
}
