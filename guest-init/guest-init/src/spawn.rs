//! Starts a program: in the control group of programs, and without a copy of this process in between.
//!
//! The child borrows our memory, and the calling thread stands still until it has become the program (`CLONE_VM` and
//! `CLONE_VFORK`, as in vfork(2)); it is born in its group (`CLONE_INTO_CGROUP`). A fork would copy page tables, and a
//! move into the group would have to stop every other thread first. Both are slow, and slower still in the clone of a
//! machine, where an emulator has to translate all that code anew.
#![expect(unsafe_code, reason = "clone3 and exec have no safe wrapper")]

use std::arch::asm;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::{Once, OnceLock};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::adopt::DEFAULT_PATH;
use crate::root::PROGRAMS_CGROUP;
use crate::sys::check;
use crate::users::Account;

/// `linux/sched.h`; wider than the constants of the `libc` crate.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Runs scripts that do not name their interpreter, as shells do.
const SHELL: &CStr = c"/bin/sh";

/// More than the calls between clone and exec need.
const STACK_BYTES: usize = 16 * 1024;

/// Everything about a program that is to be started.
pub(crate) struct Launch<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: BTreeMap<&'a str, &'a str>,
    pub(crate) workdir: &'a str,
    /// Input, output, errors. Descriptors above 2: those below are ours.
    pub(crate) stdio: [OwnedFd; 3],
    /// A session of its own with standard input as its terminal; else a process group of its own.
    pub(crate) terminal: bool,
    pub(crate) account: &'a Account,
    /// 0 leaves the limit as it is.
    pub(crate) open_files: u64,
}

/// A list of strings as exec takes it.
struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

/// What the child works from. It is made before the child is: between clone and exec nothing may be allocated.
struct Plan<'a> {
    files: Vec<CString>,
    argv: Strings,
    /// `argv` for [`SHELL`]; its second word is put in when it is known.
    script: Vec<*const c_char>,
    env: Strings,
    workdir: CString,
    stdio: [c_int; 3],
    terminal: bool,
    account: &'a Account,
    limit: Option<libc::rlimit>,
    /// What went wrong in the child, if anything did.
    error: c_int,
}

#[repr(C, align(16))]
struct Stack(MaybeUninit<[u8; STACK_BYTES]>);

impl Launch<'_> {
    /// Starts the program and returns its id. To be called through [`Reaper::watch`](crate::reaper::Reaper::watch): a child
    /// that fails before it is the program is collected here, and nobody else must take it first.
    ///
    /// # Errors
    /// What the kernel said; ENOENT and EACCES are about the program or the working directory.
    pub(crate) fn start(&self) -> io::Result<Pid> {
        prepare();
        let mut plan = self.plan()?;
        let pid = clone(&mut plan)?;
        if plan.error == 0 {
            return Ok(pid);
        }
        let _ = waitpid(pid, None);
        Err(io::Error::from_raw_os_error(plan.error))
    }

    fn plan(&self) -> io::Result<Plan<'_>> {
        let Some(name) = self.argv.first() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let argv = Strings::new(self.argv.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>()?);
        let env = self.env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        let script = [SHELL.as_ptr(), ptr::null()].into_iter().chain(argv.pointers[1..].iter().copied()).collect();
        Ok(Plan {
            files: candidates(name, self.env.get("PATH").copied().unwrap_or(DEFAULT_PATH))?,
            argv,
            script,
            env: Strings::new(env.collect::<Result<_, _>>()?),
            workdir: CString::new(self.workdir)?,
            stdio: [0, 1, 2].map(|index: usize| self.stdio[index].as_raw_fd()),
            terminal: self.terminal,
            account: self.account,
            limit: (self.open_files > 0)
                .then_some(libc::rlimit { rlim_cur: self.open_files, rlim_max: self.open_files }),
            error: 0,
        })
    }
}

/// The files that `name` may mean, in the order in which they are tried.
fn candidates(name: &str, path: &str) -> io::Result<Vec<CString>> {
    if name.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    if name.contains('/') {
        return Ok(vec![CString::new(name)?]);
    }
    let in_folder = |folder: &str| match folder {
        // An empty part is the working directory.
        "" => CString::new(format!("./{name}")),
        folder => CString::new(format!("{folder}/{name}")),
    };
    Ok(path.split(':').map(in_folder).collect::<Result<_, _>>()?)
}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

/// What programs that are started find done; a template has done it, and its clones need not.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = programs_cgroup();
        // The language's runtime has SIGPIPE ignored, which programs would inherit. What is handled is the default again
        // in a program (`CLONE_CLEAR_SIGHAND`), and a write to nobody fails here as before.
        let handled = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing, which is safe at any moment. It fails for no signal that exists.
        let _ = unsafe { sigaction(Signal::SIGPIPE, &handled) };
    });
}

extern "C" fn nothing(_: c_int) {}

/// The control group that programs are born in, or none where there is none: such a guest runs them without limits.
fn programs_cgroup() -> Option<&'static File> {
    static FOLDER: OnceLock<Option<File>> = OnceLock::new();
    FOLDER.get_or_init(|| File::open(PROGRAMS_CGROUP).ok()).as_ref()
}

/// Returns once the child is the program, or has ended. A group that takes nobody any more, since a program has removed it
/// or made groups of its own in it, does not keep programs from starting.
fn clone(plan: &mut Plan<'_>) -> io::Result<Pid> {
    match programs_cgroup() {
        Some(cgroup) => clone_into(plan, Some(cgroup)).or_else(|_| clone_into(plan, None)),
        None => clone_into(plan, None),
    }
}

fn clone_into(plan: &mut Plan<'_>, cgroup: Option<&File>) -> io::Result<Pid> {
    let mut stack = Stack(MaybeUninit::uninit());
    // SAFETY: `clone_args` is plain data for which zero bytes are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // Without our handlers: one that ran in the child would run in our memory. No thread of ours blocks a signal, so the
    // program blocks none.
    args.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = ptr::from_mut(&mut stack) as u64;
    args.stack_size = STACK_BYTES as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` names a stack that nobody else uses and that lives until the child has left it, since this thread
    // does not go on before; `child` does not return.
    let result = unsafe { clone3(&args, child, ptr::from_mut(plan).cast()) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)));
    }
    Ok(Pid::from_raw(i32::try_from(result).unwrap_or(i32::MAX)))
}

/// The system call, and in the child, on its new stack, `entry(argument)`. Returns the child's id or a negative errno.
///
/// # Safety
/// `args` must ask for a stack of the child's own, aligned to 16 bytes, and for `CLONE_VFORK`, and for no descriptor or
/// thread pointer; `entry` must not unwind.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &libc::clone_args, entry: extern "C" fn(*mut u8) -> !, argument: *mut u8) -> i64 {
    let result: i64;
    // SAFETY: in the parent the call clobbers what the kernel's convention says. The child keeps every register but rax,
    // starts with an empty stack, and never comes back.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<libc::clone_args>(),
            // Not `lateout`: those may share a register with an input, and the child needs its inputs after the call.
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: &libc::clone_args, entry: extern "C" fn(*mut u8) -> !, argument: *mut u8) -> i64 {
    let result: i64;
    // SAFETY: the kernel keeps every register but x0, in the parent and in the child; the child never comes back.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            in("x8") libc::SYS_clone3,
            inlateout("x0") ptr::from_ref(args) => result,
            in("x1") size_of::<libc::clone_args>(),
        );
    }
    result
}

/// The child's life before it is the program.
extern "C" fn child(plan: *mut u8) -> ! {
    // SAFETY: the parent waits, so this is the only reference to its plan.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.error = plan.carry_out().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: ends this process only; nothing of the parent's is flushed or run.
    unsafe { libc::_exit(127) }
}

impl Plan<'_> {
    /// Becomes the program; what comes back is why not. Nothing here allocates, and whatever it writes to memory, it writes
    /// to the parent's.
    fn carry_out(&mut self) -> io::Error {
        match self.prepare() {
            Ok(()) => self.exec(),
            Err(error) => error,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        for (number, descriptor) in (0..).zip(self.stdio) {
            // SAFETY: numbers of descriptors; the table is this process's own.
            check(unsafe { libc::dup2(descriptor, number) })?;
        }
        if self.terminal {
            // SAFETY: a plain system call.
            check(unsafe { libc::setsid() })?;
            // SAFETY: descriptor 0 is the terminal's slave by now; the argument 0 asks for nothing special.
            check(unsafe { libc::ioctl(0, libc::TIOCSCTTY as _, 0) })?;
        } else {
            // SAFETY: a plain system call.
            check(unsafe { libc::setpgid(0, 0) })?;
        }
        if let Some(limit) = &self.limit {
            // SAFETY: `limit` lives across the call. Fails without privileges where the limit is lower already.
            let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) };
        }
        // SAFETY: a terminated string.
        check(unsafe { libc::chdir(self.workdir.as_ptr()) })?;
        self.take_identity()
    }

    /// Without the C library's functions: those have all threads change their identity, and here that would be the parent's.
    fn take_identity(&self) -> io::Result<()> {
        let Account { uid, gid, groups, .. } = self.account;
        if (*uid, *gid) == (0, 0) {
            return Ok(());
        }
        // SAFETY: length and pointer describe one vector.
        check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        // SAFETY: a plain system call.
        check(unsafe { libc::syscall(libc::SYS_setgid, *gid) })?;
        // SAFETY: a plain system call.
        check(unsafe { libc::syscall(libc::SYS_setuid, *uid) })
    }

    /// Tries one file after the other, as execvp(3) does.
    fn exec(&mut self) -> io::Error {
        let (argv, env) = (self.argv.pointers.as_ptr(), self.env.pointers.as_ptr());
        let mut why = io::Error::from_raw_os_error(libc::ENOENT);
        for file in &self.files {
            // SAFETY: terminated strings, and lists of such that end with a null pointer.
            unsafe { libc::execve(file.as_ptr(), argv, env) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOEXEC) => {
                    self.script[1] = file.as_ptr();
                    // SAFETY: as above.
                    unsafe { libc::execve(SHELL.as_ptr(), self.script.as_ptr(), env) };
                    return error;
                }
                // One that may not be executed is the answer unless a later one may.
                Some(libc::EACCES) => why = error,
                Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV) => {}
                _ => return error,
            }
        }
        why
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use nix::fcntl::OFlag;
    use nix::sys::wait::WaitStatus;
    use nix::unistd::pipe2;

    use super::*;

    /// What the program wrote, and how it ended.
    fn run(argv: &[&str], env: &[(&str, &str)], workdir: &str) -> io::Result<(String, WaitStatus)> {
        let (output, end) = pipe2(OFlag::O_CLOEXEC)?;
        let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
        let account =
            Account { uid: nix::unistd::getuid().into(), gid: nix::unistd::getgid().into(), ..Account::root() };
        let launch = Launch {
            argv: &argv,
            env: env.iter().copied().collect(),
            workdir,
            stdio: [File::open("/dev/null")?.into(), end.try_clone()?, end],
            terminal: false,
            account: &account,
            open_files: 0,
        };
        let started = launch.start();
        drop(launch);
        let pid = started?;
        let mut text = String::new();
        File::from(output).read_to_string(&mut text)?;
        Ok((text, waitpid(pid, None)?))
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("iii-spawn-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn a_program_gets_its_words_its_environment_its_folder_and_a_group_of_its_own() {
        let script = "echo \"$0 $1 $A $(pwd) $(env | wc -l)\"; [ $(ps -o pgid= -p $$) = $$ ] && echo leads; exit 3";
        let env = [("A", "b c"), ("PATH", "/usr/bin:/bin")];
        let (said, end) = run(&["sh", "-c", script, "name", "one"], &env, "/tmp").expect("started");
        let lines: Vec<&str> = said.lines().collect();
        // A shell adds PWD, and some add SHLVL and `_`.
        assert!(lines[0].starts_with("name one b c /tmp "), "{said}");
        assert_eq!((lines.get(1), matches!(end, WaitStatus::Exited(_, 3))), (Some(&"leads"), true), "{end:?}");
    }

    #[test]
    fn a_program_blocks_and_ignores_no_signal_because_we_do() {
        let (said, _) = run(&["/bin/cat", "/proc/self/status"], &[], "/").expect("started");
        let set = |name: &str| {
            let line = said.lines().find(|line| line.starts_with(name)).expect("a set of signals");
            u64::from_str_radix(line.split_whitespace().nth(1).expect("a number"), 16).expect("a number")
        };
        let pipe = 1 << (libc::SIGPIPE - 1);
        assert_eq!((set("SigBlk:"), set("SigIgn:") & pipe), (0, 0));
        assert_eq!(SigSet::thread_get_mask().expect("ours"), SigSet::empty());
    }

    #[test]
    fn what_cannot_be_started_says_why_and_leaves_no_process() {
        let folder = folder("failures");
        let file = folder.join("file");
        fs::write(&file, "no program").expect("written");
        let file = file.to_str().expect("UTF-8");
        for (argv, path, workdir, wanted) in [
            (["iii-no-such"], "/usr/bin:/bin", "/", libc::ENOENT),
            ([file], "", "/", libc::EACCES),
            (["file"], folder.to_str().expect("UTF-8"), "/", libc::EACCES),
            (["/bin/true"], "", "/iii-no-such", libc::ENOENT),
        ] {
            let failed = run(&argv, &[("PATH", path)], workdir).map_err(|error| error.raw_os_error());
            assert_eq!(failed, Err(Some(wanted)), "{argv:?}");
        }
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn a_script_that_names_no_interpreter_is_the_shells() {
        let folder = folder("script");
        let script = folder.join("script");
        fs::write(&script, "echo \"$0 $1\"\n").expect("written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
        let (said, end) = run(&["script", "word"], &[("PATH", folder.to_str().expect("UTF-8"))], "/").expect("started");
        assert_eq!(said, format!("{} word\n", script.display()));
        assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}");
        fs::remove_dir_all(folder).expect("removed");
    }

    fn names(name: &str, path: &str) -> Vec<String> {
        let found = candidates(name, path).expect("no NUL");
        found.into_iter().map(|file| file.into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn a_name_is_looked_for_in_the_path_and_a_path_is_not() {
        assert_eq!(names("sh", "/a:/b"), ["/a/sh", "/b/sh"]);
        assert_eq!(names("sh", ":/b:"), ["./sh", "/b/sh", "./sh"]);
        assert_eq!(names("./sh", "/a"), ["./sh"]);
        assert_eq!(candidates("", "/a").map_err(|error| error.raw_os_error()), Err(Some(libc::ENOENT)));
        assert!(candidates("a\0b", "/a").is_err());
    }
}
