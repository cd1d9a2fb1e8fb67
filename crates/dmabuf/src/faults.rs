//! Says what a fault in shared memory means before the process dies of it.
//!
//! A write to memory that is mapped for reading is SIGSEGV, and a touch of a page that somebody took away is SIGBUS;
//! neither says whose memory it was. [`install`] puts a handler before the one that was there. It looks the address up
//! among the ranges that were [described](describe), writes what it finds to standard error, and lets the handler
//! before it go on, which ends the process as it always did.
//!
//! A handler interrupts code anywhere, so it neither allocates nor locks: it reads atomics and descriptions that never
//! change, and writes pieces of text from its stack by write(2). A description is freed when its range goes only if no
//! handler runs at that moment; else it is left.

#![allow(unsafe_code, reason = "a signal handler, and the descriptions that it reads without a lock")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc::{self, siginfo_t};

use crate::error::{Error, Result};
use crate::fork::around_forks;

/// What is said of faults in a range of addresses.
#[derive(Debug, Default)]
pub struct Description {
    /// What lies there: "the image /m/llama.daxfs".
    pub what: String,
    /// Its parts by address: first byte, length, and what they are. Of parts that overlap, shorter ones are named.
    pub parts: Vec<(usize, usize, String)>,
}

/// A description in use, until it is dropped.
#[derive(Debug)]
pub struct Described(&'static Node);

/// What to do about faults, in the words of the interface that the user has.
#[derive(Debug, Clone, Copy)]
pub struct Advice {
    /// After a write to memory that is for reading.
    pub read_only: &'static str,
    /// After a touch of memory that is gone.
    pub gone: &'static str,
}

/// A place for a description. Places are never freed, and used again.
#[derive(Debug)]
struct Node {
    /// 0 when it is free.
    start: AtomicUsize,
    end: AtomicUsize,
    description: AtomicPtr<Description>,
    next: Option<&'static Node>,
}

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Head of the list of places, which only grows.
static NODES: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());
/// Held while the list is changed, and around forks; the handler does without.
static CHANGE: Mutex<()> = Mutex::new(());
/// Whether forks take `CHANGE`.
static FORKS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// `CHANGE`, while this thread forks.
    static HELD: Cell<Option<MutexGuard<'static, ()>>> = const { Cell::new(None) };
}
/// How many handlers read descriptions now.
static READERS: AtomicUsize = AtomicUsize::new(0);
/// Leaked when the handler was installed.
static ADVICE: AtomicPtr<Advice> = AtomicPtr::new(ptr::null_mut());
/// What handled the two signals before; leaked.
static BEFORE: [AtomicPtr<libc::sigaction>; 2] =
    [AtomicPtr::new(ptr::null_mut()), AtomicPtr::new(ptr::null_mut())];

/// Installs the handler; the second time nothing happens.
///
/// # Errors
/// [`Error::Os`] when the kernel refuses.
pub fn install(advice: Advice) -> Result<()> {
    let _change = change();
    if !ADVICE.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    ADVICE.store(Box::into_raw(Box::new(advice)), Ordering::Release);
    for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
        let refused = || Error::os("sigaction", format!("signal {signal}"), std::io::Error::last_os_error());
        let mut old = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks for the action of a valid signal, which goes to a struct that is writable and of the size.
        if unsafe { libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) } != 0 {
            return Err(refused());
        }
        // SAFETY: filled in by the call, and zeros are a valid value of each field to begin with.
        let old = unsafe { old.assume_init() };
        // Known before the handler can run.
        before.store(Box::into_raw(Box::new(old)), Ordering::Release);
        let mut new = old;
        let function: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
        new.sa_sigaction = function as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the set belongs to a struct of this function.
        unsafe { libc::sigemptyset(&raw mut new.sa_mask) };
        // SAFETY: the function has the signature that SA_SIGINFO asks for and does only what is allowed in a handler
        // (head of this module); the struct is initialised.
        if unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) } != 0 {
            return Err(refused());
        }
    }
    Ok(())
}

/// Has faults in `len` bytes from the address `start` on explained, until what is returned is dropped: before the
/// memory there is unmapped.
#[must_use]
pub fn describe(start: usize, len: usize, mut description: Description) -> Described {
    // For a search: by address, longer ones first, so that the last of those around an address is the shortest.
    description.parts.sort_by_key(|&(start, len, _)| (start, usize::MAX - len));
    let description = Box::into_raw(Box::new(description));
    let _change = change();
    let node = nodes().find(|node| node.start.load(Ordering::SeqCst) == 0).unwrap_or_else(|| {
        // SAFETY: null, or a place that was leaked here.
        let next = unsafe { NODES.load(Ordering::SeqCst).as_ref() };
        let node = Box::new(Node {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            description: AtomicPtr::new(ptr::null_mut()),
            next,
        });
        let node: &'static Node = Box::leak(node);
        NODES.store(ptr::from_ref(node).cast_mut(), Ordering::SeqCst);
        node
    });
    // The start comes last: it is what makes the place count.
    node.description.store(description, Ordering::SeqCst);
    node.end.store(start.saturating_add(len), Ordering::SeqCst);
    node.start.store(start, Ordering::SeqCst);
    Described(node)
}

impl Drop for Described {
    fn drop(&mut self) {
        let _change = change();
        self.0.start.store(0, Ordering::SeqCst);
        let description = self.0.description.swap(ptr::null_mut(), Ordering::SeqCst);
        // A handler that begins to read from now on finds the place free: all of these are sequentially consistent.
        if READERS.load(Ordering::SeqCst) == 0 {
            // SAFETY: from `Box::into_raw` in `describe`, taken out of the only place that had it, and nobody reads it.
            drop(unsafe { Box::from_raw(description) });
        }
    }
}

/// Takes the lock for a change.
fn change() -> MutexGuard<'static, ()> {
    if !FORKS.load(Ordering::Acquire) {
        // Twice does no harm.
        around_forks(before_fork, after_fork);
        FORKS.store(true, Ordering::Release);
    }
    lock()
}

fn lock() -> MutexGuard<'static, ()> {
    CHANGE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn before_fork() {
    // A thread that is at its end forks without.
    let _ = HELD.try_with(|held| held.set(Some(held.take().unwrap_or_else(lock))));
}

extern "C" fn after_fork() {
    let _ = HELD.try_with(Cell::take);
}

fn nodes() -> impl Iterator<Item = &'static Node> {
    // SAFETY: null, or a place that `describe` leaked.
    let first = unsafe { NODES.load(Ordering::SeqCst).as_ref() };
    std::iter::successors(first, |node| node.next)
}

/// The handler.
extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: each thread has an errno of its own, at an address that is always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { errno.read() };
    // SAFETY: the kernel passes a filled-in struct to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    let address = match code {
        // From the kernel, for an access.
        1.. => {
            // SAFETY: as above, and nobody changes it.
            let info = unsafe { &*info };
            // SAFETY: for these two signals from the kernel the field is the address of the fault.
            Some(unsafe { info.si_addr() }.addr())
        }
        // Raised by this process: a handler that was installed after this one has done its work and passes the signal
        // on, without the address. The kernel has it in the context, as that of the thread's last fault.
        libc::SI_TKILL => last_fault(context),
        _ => None,
    };
    READERS.fetch_add(1, Ordering::SeqCst);
    if let Some(address) = address {
        explain(signal, address);
    }
    READERS.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { errno.write(saved) };
    pass_on(signal, info, context, code > 0);
}

/// Address of the last fault of this thread that no handler of the kernel's mended.
fn last_fault(context: *mut c_void) -> Option<usize> {
    let context = context.cast::<libc::ucontext_t>();
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the kernel passes the thread's context to a handler with SA_SIGINFO.
        let address = unsafe { (*context).uc_mcontext.gregs[libc::REG_CR2 as usize] };
        usize::try_from(address).ok()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: the kernel passes the thread's context to a handler with SA_SIGINFO.
        let address = unsafe { (*context).uc_mcontext.fault_address };
        usize::try_from(address).ok()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        None
    }
}

/// Writes what lies at the address, if it is known, and what to do.
fn explain(signal: c_int, address: usize) {
    let found = nodes().find(|node| {
        (node.start.load(Ordering::SeqCst)..node.end.load(Ordering::SeqCst)).contains(&address)
            && node.start.load(Ordering::SeqCst) != 0
    });
    // SAFETY: null, or a description that is not freed while `READERS` counts this handler.
    let description = found.and_then(|node| unsafe { node.description.load(Ordering::SeqCst).as_ref() });
    // SAFETY: null, or leaked by `install`.
    let advice = unsafe { ADVICE.load(Ordering::SeqCst).as_ref() };
    let (Some(description), Some(advice)) = (description, advice) else { return };
    let is_gone = signal == libc::SIGBUS;
    say(if is_gone { "daxfs: touched memory that is gone: " } else { "daxfs: wrote to read-only memory: " });
    let parts = &description.parts;
    let until = parts.partition_point(|&(start, _, _)| start <= address);
    let around = parts[..until].iter().rev().take(NESTED).find(|(start, len, _)| address - start < *len);
    if let Some((start, _, what)) = around {
        say("byte ");
        say_number(address - start);
        say(" of ");
        say(what);
        say(", in ");
    }
    say(&description.what);
    say("\ndaxfs: ");
    say(if is_gone { advice.gone } else { advice.read_only });
    say("\n");
}

/// How many parts that begin before an address are looked at: those around a part are few.
const NESTED: usize = 64;

fn say(text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // SAFETY: reads from a live slice of that length.
        let written = unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(written) {
            Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
            _ => return,
        }
    }
}

fn say_number(mut number: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || at == 0 {
            break;
        }
    }
    say(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
}

/// A handler that was set with SA_SIGINFO.
type Informed = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// Does what would have been done without this handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, is_fault: bool) {
    let index = usize::from(signal == SIGNALS[1]);
    // SAFETY: null, or leaked by `install`.
    let before = unsafe { BEFORE[index].load(Ordering::SeqCst).as_ref() };
    match before {
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
            if before.sa_flags & libc::SA_SIGINFO == 0 {
                // SAFETY: neither of the two special values, so it is a handler; without SA_SIGINFO it takes the number.
                let function: extern "C" fn(c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
                function(signal);
            } else {
                // SAFETY: a handler, as above; with SA_SIGINFO it takes these three.
                let function: Informed = unsafe { std::mem::transmute(before.sa_sigaction) };
                function(signal, info, context);
            }
        }
        _ => {
            let mut default = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: zeros are the default action, without flags and with an empty mask.
            unsafe { libc::sigaction(signal, default.as_mut_ptr(), ptr::null_mut()) };
            if !is_fault {
                // A fault happens again when the handler returns. What was sent has to be sent again.
                // SAFETY: sends a signal to this thread, where it waits until the handler returns.
                unsafe { libc::raise(signal) };
            }
        }
    }
}

#[cfg(test)]
#[path = "faults_tests.rs"]
mod tests;
