"""The tests marked ``gpu`` that the stand-in cannot run."""

#: The start of a test's id -> the reason.
SKIPPED = {
    'tests/cli/test_devices.py::test_processes_share_a_gpu': 'processes of their own, without the stand-in',
    'tests/cli/test_devices.py::test_the_doctor_finds_the_gpu': 'probes in processes of their own',
    'tests/golden/test_command_line.py::': 'a command in a process of its own, without the stand-in',
    'tests/models/test_cuda_graph.py::test_memory_does_not_grow': 'hundreds of images, which take an hour',
    'tests/ops/test_transfer.py::test_uploads_in_progress_are_not_overwritten': 'a GPU that works while the host does',
    'tests/training/test_distributed.py::': 'NCCL and several processes',
}
