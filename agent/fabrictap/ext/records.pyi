RECORD_SIZE: int
CM_RECORD_SIZE: int
CM_KEY_AT: int
CM_KEY_SIZE: int
POST_KEY_SIZE: int
POST_SIZE: int
SIZE_SLOTS: int
LOSSES: tuple[str, ...]

QP_CREATED: int
QP_MODIFIED: int
QP_DESTROYED: int
QP_SNAPSHOT: int
MR_REGISTERED: int
MR_DEREGISTERED: int
CONTEXT_OPENED: int
CONTEXT_CLOSED: int
DEVICE_REMOVED: int
CM_EVENT: int
CM_SENT: int
QP_EXTENDED: int
PROCESS_EXITED: int
AH_CREATED: int

QUEUE_SEND: int
QUEUE_RECEIVE: int
QUEUE_SHARED_RECEIVE: int

class Record:
    raw: bytes
    kind: int
    time_ns: int
    cgroup_id: int
    pid: int
    tid: int
    comm: str
    device: str
    uverbs: int | None
    exiting: bool
    kernel: bool
    qpn: int
    qp_type: int
    qp_state: int
    qp_mask: int
    qp_result: int
    qp_port: int
    qp_peer_qpn: int
    qp_rq_psn: int
    qp_sq_psn: int
    qp_path_mtu: int
    qp_gid: str | None
    qp_gid_index: int | None
    qp_peer_gid: str | None
    mr_address: int | None
    mr_access: int | None
    mr_length: int
    mr_lkey: int
    mr_rkey: int
    ah_id: int
    ah_peer_gid: str | None
    qp_ex_functions: list[int | None]
    def place(self, device: str, gid: str | None = None) -> None: ...

class PostKey:
    raw: bytes
    context: int
    address_handle: int
    pid: int
    qpn: int
    peer_qpn: int
    operation: int
    queue: int
    qp_type: int

class Post:
    operations: int
    bytes: int
    sges: int
    inlined: int
    signaled: int
    sizes: tuple[int, ...]

def post_key(raw: bytes) -> PostKey: ...
def post(raw: bytes) -> Post: ...
def decode(batch: bytes) -> list[Record]: ...
def divide(batch: bytes) -> tuple[list[Record], bytes]: ...
def context_key(context: int, pid: int) -> bytes: ...
def context_device(value: bytes) -> str: ...
def sum_per_cpu(value: bytes) -> int: ...
