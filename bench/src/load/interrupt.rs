//! Ctrl-C: the first one ends a measured run early, and what was measured is reported; another one, or one while
//! nothing is measured, ends the process.
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::Notify;

/// The exit status of a process that SIGINT ended, as shells report it.
const STATUS: i32 = 130;

#[derive(Default)]
pub struct Interrupt {
    measuring: Cell<bool>,
    seen: Cell<bool>,
    wake: Notify,
}

impl Interrupt {
    /// Listens from now on. Must be called within a `LocalSet`.
    pub fn listen() -> Rc<Interrupt> {
        let interrupt = Rc::<Interrupt>::default();
        let inner = interrupt.clone();
        tokio::task::spawn_local(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if inner.seen.get() || !inner.measuring.get() {
                    std::process::exit(STATUS);
                }
                inner.seen.set(true);
                inner.wake.notify_waiters();
            }
        });
        interrupt
    }

    pub fn seen(&self) -> bool {
        self.seen.get()
    }

    pub fn measuring(&self, now: bool) {
        self.measuring.set(now);
    }

    /// Returns when a run is to end early.
    pub async fn wait(&self) {
        while !self.seen.get() {
            self.wake.notified().await;
        }
    }
}
