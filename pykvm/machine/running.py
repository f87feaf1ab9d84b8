"""The life of a machine's runs: start, wait, pause, stop, and what came of it."""

from __future__ import annotations

import threading
import time

from pykvm.kvm import Vcpu
from pykvm.machine.attached import Attached
from pykvm.machine.loop import drive
from pykvm.machine.result import MachineError, Outcome, RunResult, Status, Stop, StopReason

# Ends that need no second look: nothing is loaded for them.
_PLAIN_ENDS = (StopReason.DEBUG_EXIT, StopReason.STOPPED)


class Running(Attached):
    """Running a machine. `Machine` is made of this."""

    vcpus_have_run = False
    _only: Vcpu | None = None
    _still = False  # devices stand still, for `pause()`

    @property
    def status(self) -> Status:
        """What the machine is doing; a crashed one says so until it is reset or restored."""
        if self._status is Status.RUNNING and self.control.pausing:
            return Status.PAUSED
        return self._status

    def run(
        self, timeout: float | None = None, *, reboot: bool = False, only: Vcpu | None = None
    ) -> RunResult:
        """Runs the guest in this thread (and one per vCPU when there are several) until it stops.

        `timeout` is in seconds. With `reboot` a guest that resets its machine starts again, as
        after `reset()`. With `only` the other vCPUs stand still. An exception in a handler stops
        every vCPU, keeps the exit as `exception.exit`, and is raised here; so is
        `KeyboardInterrupt`. Raises `MachineError` on a crashed, closed or already running machine.
        """
        self._check_usable("run")
        if timeout is not None and timeout < 0:
            raise MachineError(f"timeout={timeout} is negative; use None for no limit")
        if not self._running.acquire(blocking=False):
            raise MachineError("the machine is running already; stop() it first")
        try:
            self._status = Status.RUNNING
            self.has_run = self.vcpus_have_run = True
            started = time.monotonic()
            marks = self._output_marks()
            try:
                self._only = only
                self.control.alone = only is not None or len(self.vcpus) == 1
                outcome, resets = self._run_boots(timeout, reboot)
            except BaseException:
                self._status = Status.READY
                raise
            elapsed = time.monotonic() - started
            return self._finish(outcome, elapsed, marks, resets)
        finally:
            self.control.begin()
            self._running.release()

    def _run_boots(self, timeout: float | None, reboot: bool) -> tuple[Outcome, int]:
        """Runs until the end, over resets if `reboot`; returns it and the number of resets."""
        resets = 0
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            mark = self._output_marks()[0]
            outcome = self._run_vcpus(timeout)
            if outcome.reason not in _PLAIN_ENDS:
                outcome = self._judge(outcome, mark)
            if not reboot or outcome.reason is not StopReason.RESET:
                return outcome, resets
            stopped = self.control.take_stop()
            if stopped is None:
                from pykvm.machine.vcpu_reset import reset_machine

                reset_machine(self.whole)
                resets += 1
                stopped = self.control.outcome
            if stopped is not None:  # somebody's stop() during the restart
                return stopped, resets
            if deadline is not None:
                timeout = max(0.0, deadline - time.monotonic())

    def _judge(self, outcome: Outcome, mark: int) -> Outcome:
        output = b"" if self.standard is None else self.standard.captured.since(mark)
        if outcome.reason in (StopReason.SHUTDOWN, StopReason.PANIC) or b"Kernel panic" in output:
            from pykvm.machine.ending import judge

            return judge(self.whole, outcome, output)
        return outcome

    def _run_vcpus(self, timeout: float | None) -> Outcome:
        from pykvm.machine import threads

        if timeout is not None and timeout == 0:
            return Outcome(StopReason.TIMEOUT, 0)
        if self._only is not None:
            return threads.run_here(self.whole, self._only, timeout)
        if self.interrupt_windows and self.irqchip == "kernel":
            from pykvm.machine.windows import InterruptWindows

            with InterruptWindows(self.whole) as self.windows:
                return threads.run_all(self.whole, timeout)
        return threads.run_all(self.whole, timeout)

    def _finish(
        self, outcome: Outcome, elapsed: float, marks: tuple[int, int], resets: int
    ) -> RunResult:
        if self.io_threads and not self._still:
            from pykvm.machine.virtio import settle

            settle(self.whole)
        reason = outcome.reason
        result = RunResult(outcome, elapsed, self.exit_counts())
        result.resets = resets
        if self.assist is not None:
            result.assisted = self.assist.counts
        if self.standard is not None:
            result.serial = self.standard.captured.since(marks[0])
            result.debugcon = self.standard.debugcon_captured.since(marks[1])
        if reason.is_crash:
            from pykvm.machine.report import crash_report

            self._status = Status.CRASHED
            self.crash_reason = outcome.detail or str(reason)
            result.last_exits = self.vcpus[outcome.vcpu].last_exits()
            if reason is not StopReason.HANDLER_ERROR:
                result.report = crash_report(self.whole, outcome, result.last_exits)
        else:
            ended = reason in (StopReason.HALTED, StopReason.POWER_OFF, StopReason.RESET)
            self._status = Status.HALTED if ended else Status.READY
        self._result = result
        if outcome.exception is not None and reason is StopReason.HANDLER_ERROR:
            raise outcome.exception
        return result

    def drive_vcpu(self, vcpu: Vcpu) -> Outcome:
        """One vCPU's loop in the calling thread."""
        self._local.vcpu = vcpu
        try:
            return drive(self.whole, vcpu)
        finally:
            self._local.vcpu = None

    def start(self, timeout: float | None = None) -> None:
        """Runs the guest in the background; see `wait()`, `pause()`, `stop()`."""
        self._check_usable("start")
        if self._thread is not None:
            raise MachineError("the machine was started already; wait() for it first")
        self._result = self._failure = None

        def body() -> None:
            try:
                self.run(timeout)
            except BaseException as error:
                self._failure = error

        self._status = Status.RUNNING
        self._thread = threading.Thread(target=body, name="pykvm-run", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> RunResult | None:
        """Waits for a started run; None if it still runs after `timeout` seconds.

        Raises what the run raised.
        """
        thread = self._thread
        if thread is None:
            raise MachineError("the machine was not started; call start() or run()")
        thread.join(timeout)
        if thread.is_alive():
            return None
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._result

    def stop(self) -> None:
        """Ends the run, from any thread or handler; it returns with reason "stopped".

        Between runs it is remembered: the next run returns at once, so that no stop is lost.
        """
        self.control.post(Outcome(StopReason.STOPPED, 0))

    def pause(self) -> None:
        """Parks every vCPU at a clean point: outside the guest, with no exit half-handled.

        Then nothing is in flight in virtio devices, either, and no I/O thread runs.
        """
        self._check_open()
        if self._status is Status.RUNNING:
            self.control.pause()
            if self.virtio and not self._still:
                from pykvm.machine.virtio import stand_still

                self._still = True
                stand_still(self.whole)

    def resume(self) -> None:
        """Lets a paused machine go on."""
        self._check_open()
        self._go_on()
        self.control.resume()

    def _go_on(self) -> None:
        if self._still:
            from pykvm.machine.virtio import go_on

            self._still = False
            go_on(self.whole)

    def request_stop(self, reason: StopReason, value: int | None = None, detail: str = "") -> None:
        """For devices: ends the run. Raises `Stop` in a vCPU's thread; posts it from others."""
        vcpu = getattr(self._local, "vcpu", None)
        if vcpu is not None:
            raise Stop(reason, value, detail)
        self.control.post(Outcome(reason, 0, value, detail))

    def guest_reset(self) -> None:
        """For devices: the guest resets the machine."""
        self.request_stop(StopReason.RESET)

    def guest_power_off(self) -> None:
        """For devices: the guest switches the machine off."""
        self.request_stop(StopReason.POWER_OFF)

    # -- what the loop calls ---------------------------------------------------------------------

    def drain_trace(self, vcpu: Vcpu) -> None:
        """A lossless trace ring is full: its records go to `on_trace`."""
        records = vcpu.trace_records()
        if self.on_trace is not None:
            self.on_trace(records)

    def drain_coalesced(self) -> None:
        """Writes that KVM batched happen before the exit that came after them."""
        for access in self.vm.drain_coalesced():
            bus = self.pio if access.is_pio else self.mmio
            bus.write(access.address, len(access.data), int.from_bytes(access.data, "little"))

    # -- statistics --------------------------------------------------------------------------------

    def exit_counts(self) -> dict[str, int]:
        """Exits by `KVM_EXIT_*` name over all vCPUs."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, n in vcpu.exit_counts().items():
                total[name] = total.get(name, 0) + n
        return total

    def _output_marks(self) -> tuple[int, int]:
        if self.standard is None:
            return 0, 0
        return self.standard.captured.total, self.standard.debugcon_captured.total
