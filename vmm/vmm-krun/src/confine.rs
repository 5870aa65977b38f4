//! What a VM's process may not do any more once its guest runs, in case the guest breaks out into it.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the VM's process: {0}")]
pub struct ConfineError(String);

/// Starting programs, being somebody else, mounting, looking into other processes, new connections.
const NEVER: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
];

/// For this thread and all it starts, for good.
pub(crate) fn confine() -> Result<(), ConfineError> {
    let failed = |error: &dyn std::fmt::Display| ConfineError(error.to_string());
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        NEVER.iter().map(|number| (*number, Vec::new())).collect();
    // New threads, yes; new processes, no.
    let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or_default();
    let process = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| failed(&error))?;
    rules.insert(libc::SYS_clone, vec![process]);
    #[cfg(target_arch = "x86_64")]
    for number in [libc::SYS_fork, libc::SYS_vfork] {
        rules.insert(number, Vec::new());
    }
    let refuse = |rules, errno: i32| -> Result<BpfProgram, ConfineError> {
        let errno = u32::try_from(errno).unwrap_or_default();
        let arch = std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch);
        filter.and_then(TryInto::try_into).map_err(|error| failed(&error))
    };
    // Its flags are in memory, where a filter does not look; the C library then asks for the older call.
    let unknown = refuse([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
    for program in [unknown, refuse(rules, libc::EPERM)?] {
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_thread_has_threads_but_no_programs_and_no_connections() {
        let confined = std::thread::spawn(|| {
            confine().unwrap();
            let thread = std::thread::spawn(|| 7).join().unwrap();
            let program = std::process::Command::new("true").spawn().map(drop);
            let connection = std::net::TcpStream::connect("127.0.0.1:9").map(drop);
            let file = std::fs::read("/proc/self/stat").is_ok();
            (thread, program, connection, file)
        });
        let (thread, program, connection, file) = confined.join().unwrap();
        assert_eq!((thread, file), (7, true));
        assert_eq!(program.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(connection.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
}
