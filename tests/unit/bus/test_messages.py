"""The wire contract: golden bytes per message. A change here is a break on the wire."""

import msgspec
import pytest

from bus.codec import codec, encode
from bus.messages.base import pack_u32, pack_u64
from bus.messages.batches import BatchJob, LineError, LineResult, StoredBatch, StoredFile, TokensUsed
from bus.messages.fleet import (
    DeadLetter,
    FrontendCard,
    MetricsQuery,
    ModelCard,
    ProcessMetrics,
    RouterCard,
    StepSample,
    TierRate,
    WorkerCard,
    WorkerLoad,
)
from bus.messages.inference import (
    Accepted,
    Cancel,
    Drain,
    Failed,
    Finished,
    GenerateJob,
    RequestUsage,
    Resume,
    Sampling,
    SetRoles,
    StepBatch,
    Stopping,
    TokenLogprobs,
    UsageBatch,
)
from bus.messages.keys import ApiKey, KeyUse, KeyUses
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvQuery, TierBatch
from bus.messages.responses import ResponseQuery, ResponseState, StoredResponse
from bus.messages.route import Placed, RouteBatch
from bus.messages.transfer import AgentAddress, BlockOffer, PeerAnswer, PeerQuery

GOLDEN: list[tuple[msgspec.Struct, str]] = [
    (
        GenerateJob(
            request_id="r1",
            frontend="f-1",
            ticket=7,
            model="m",
            prompt=pack_u32([1, 2]),
            stopping=Stopping(max_tokens=4),
        ),
        "de0007a474797065ac67656e65726174655f6a6f62aa726571756573745f6964a27231a866726f6e74656e64a3662d31a674"
        "69636b657407a56d6f64656ca16da670726f6d7074c4080100000002000000a873746f7070696e6781aa6d61785f746f6b65"
        "6e7304",
    ),
    (
        GenerateJob(
            request_id="r1",
            attempt=1,
            frontend="f-1",
            ticket=8,
            model="m",
            prompt=pack_u32([1]),
            output=pack_u32([9]),
            sampling=Sampling(temperature=0.5, top_p=0.9, seed=3, top_logprobs=2),
            stopping=Stopping(max_tokens=4, stop_token_ids=[2]),
            latency_class="batch",
            tenant="t",
            cache_salt="s",
            submitted_at=1.5,
            deadline_at=2.5,
        ),
        "de000fa474797065ac67656e65726174655f6a6f62aa726571756573745f6964a27231a7617474656d707401a866726f6e74"
        "656e64a3662d31a67469636b657408a56d6f64656ca16da670726f6d7074c40401000000a66f7574707574c40409000000a8"
        "73616d706c696e6784ab74656d7065726174757265cb3fe0000000000000a5746f705f70cb3feccccccccccccda473656564"
        "03ac746f705f6c6f6770726f627302a873746f7070696e6782aa6d61785f746f6b656e7304ae73746f705f746f6b656e5f69"
        "64739102ad6c6174656e63795f636c617373a56261746368a674656e616e74a174aa63616368655f73616c74a173ac737562"
        "6d69747465645f6174cb3ff8000000000000ab646561646c696e655f6174cb4004000000000000",
    ),
    (
        StepBatch(
            "w-1",
            3,
            pack_u32([7]),
            pack_u32([0]),
            pack_u32([42]),
            [Accepted(7)],
            [Finished(7, 1, "stop", 16)],
            [Failed(8, "engine_busy", "full", True)],
            [TokenLogprobs(7, 0, -0.5, [42], [-0.5])],
        ),
        "9ba3772d3103c40407000000c40400000000c4042a00000091930700a091940701a473746f7010919508ab656e67696e655f6275"
        "7379a466756c6cc3c091950700cbbfe0000000000000912a91cbbfe00000000000009090",
    ),
    (
        Cancel(frontend="f-1", tickets=pack_u32([7, 8])),
        "83a474797065a663616e63656ca866726f6e74656e64a3662d31a77469636b657473c4080700000008000000",
    ),
    (
        UsageBatch(
            tenant="t",
            requests=[
                RequestUsage(
                    request_id="r1",
                    model="m",
                    tenant="t",
                    prompt_tokens=3,
                    output_tokens=4,
                    cached_tokens=1,
                    finish_reason="stop",
                    finished_at=1.5,
                )
            ],
        ),
        "83a474797065ab75736167655f6261746368a674656e616e74a174a872657175657374739189a474797065ad726571756573"
        "745f7573616765aa726571756573745f6964a27231a56d6f64656ca16da674656e616e74a174ad70726f6d70745f746f6b65"
        "6e7303ad6f75747075745f746f6b656e7304ad6361636865645f746f6b656e7301ad66696e6973685f726561736f6ea47374"
        "6f70ab66696e69736865645f6174cb3ff8000000000000",
    ),
    (
        KvBatch(
            "w-1",
            9,
            0,
            [
                msgspec.Raw(encode(BlocksStored(0, pack_u64([5])))),
                msgspec.Raw(encode(BlocksRemoved(pack_u64([5]), "host"))),
                msgspec.Raw(encode(BlocksCleared())),
            ],
        ),
        "96a3772d3109009394a673746f72656400c4080500000000000000a664657669636593a772656d6f766564c4080500000000"
        "000000a4686f737492a7636c6561726564a66465766963650000",
    ),
    (
        WorkerCard(
            worker="w-1",
            model="m",
            engine="torch",
            roles=["both"],
            slots=8,
            block_size=16,
            num_blocks=64,
            max_model_len=128,
            host="h",
            pid=1,
            version="0.1.0",
            started_at=1.5,
        ),
        "8da474797065ab776f726b65725f63617264a6776f726b6572a3772d31a56d6f64656ca16da6656e67696e65a5746f726368"
        "a5726f6c657391a4626f7468a5736c6f747308aa626c6f636b5f73697a6510aa6e756d5f626c6f636b7340ad6d61785f6d6f"
        "64656c5f6c656ecc80a4686f7374a168a370696401a776657273696f6ea5302e312e30aa737461727465645f6174cb3ff800"
        "0000000000",
    ),
    (
        ModelCard(
            model="m",
            max_model_len=128,
            vocab_size=10,
            eos_token_ids=[2],
            files={"tokenizer.json": "ab"},
            created_at=1.5,
        ),
        "87a474797065aa6d6f64656c5f63617264a56d6f64656ca16dad6d61785f6d6f64656c5f6c656ecc80aa766f6361625f7369"
        "7a650aad656f735f746f6b656e5f6964739102a566696c657381ae746f6b656e697a65722e6a736f6ea26162aa6372656174"
        "65645f6174cb3ff8000000000000",
    ),
    (
        FrontendCard(frontend="f-1", url="http://127.0.0.1:8000", host="h", pid=1, version="0.1.0", started_at=1.5),
        "87a474797065ad66726f6e74656e645f63617264a866726f6e74656e64a3662d31a375726cb5687474703a2f2f3132372e30"
        "2e302e313a38303030a4686f7374a168a370696401a776657273696f6ea5302e312e30aa737461727465645f6174cb3ff800"
        "0000000000",
    ),
    (
        WorkerLoad(
            worker="w-1",
            model="m",
            running=1,
            waiting=0,
            free_blocks=3,
            num_blocks=4,
            prefill_tokens=0,
            step_s=0.25,
            at=1.5,
        ),
        "de000aa474797065ab776f726b65725f6c6f6164a6776f726b6572a3772d31a56d6f64656ca16da772756e6e696e6701a7776169"
        "74696e6700ab667265655f626c6f636b7303aa6e756d5f626c6f636b7304ae70726566696c6c5f746f6b656e7300a6737465"
        "705f73cb3fd0000000000000a26174cb3ff8000000000000",
    ),
    (
        DeadLetter(subject="s", code="malformed", reason="why", payload=b"x", died_at=1.5),
        "86a474797065ab646561645f6c6574746572a77375626a656374a173a4636f6465a96d616c666f726d6564a6726561736f6e"
        "a3776879a77061796c6f6164c40178a7646965645f6174cb3ff8000000000000",
    ),
    (MetricsQuery(), "81a474797065ad6d6574726963735f7175657279"),
    (
        ProcessMetrics(process="w-1", text="x 1"),
        "83a474797065af70726f636573735f6d657472696373a770726f63657373a3772d31a474657874a3782031",
    ),
    (
        RouterCard(router="r-1", models=["m"], host="h", pid=1, version="0.1.0", started_at=1.5),
        "87a474797065ab726f757465725f63617264a6726f75746572a3722d31a66d6f64656c7391a16da4686f7374a168a3706964"
        "01a776657273696f6ea5302e312e30aa737461727465645f6174cb3ff8000000000000",
    ),
    (
        RouteBatch(
            "r-1",
            3,
            [Placed("q-1", "w-1", "acme", "interactive", 130, 66, 64, pack_u64([7, 2**64 - 1]), "f-1", 9)],
        ),
        "94a3722d3103919aa3712d31a3772d31a461636d65ab696e746572616374697665cc824240c4100700000000000000ffffff"
        "ffffffffffa3662d3109c2",
    ),
    (
        KvQuery(epoch=9, since=3),
        "83a474797065a86b765f7175657279a565706f636809a573696e636503",
    ),
    (
        KvBatch("w-1", 9, 4, [msgspec.Raw(encode(BlocksStored(0, pack_u64([5]))))], 1, 2),
        "96a3772d3109049194a673746f72656400c4080500000000000000a66465766963650102",
    ),
    (
        WorkerLoad(
            worker="w-1",
            model="m",
            running=1,
            waiting=2,
            free_blocks=3,
            num_blocks=4,
            prefill_tokens=5,
            step_s=0.25,
            at=1.5,
            kv_epoch=9,
            kv_seq=3,
            kv_count=2,
            kv_xor=2**64 - 1,
            waiting_tokens=4,
            steps=[StepSample(0.25, 5, 1, 64)],
        ),
        "de0010a474797065ab776f726b65725f6c6f6164a6776f726b6572a3772d31a56d6f64656ca16da772756e6e696e6701a777"
        "616974696e6702ab667265655f626c6f636b7303aa6e756d5f626c6f636b7304ae70726566696c6c5f746f6b656e7305a673"
        "7465705f73cb3fd0000000000000a26174cb3ff8000000000000a86b765f65706f636809a66b765f73657103a86b765f636f"
        "756e7402a66b765f786f72cfffffffffffffffffae77616974696e675f746f6b656e7304a573746570739194cb3fd0000000"
        "000000050140",
    ),
    (
        TierBatch("redis-1", "w-1", [msgspec.Raw(encode(BlocksRemoved(pack_u64([5]), "remote")))], b"s", 7, 1.5),
        "96a772656469732d31a3772d319193a772656d6f766564c4080500000000000000a672656d6f7465c4017307cb3ff8000000000000",
    ),
    (
        PeerQuery(space=b"s", block_hashes=pack_u64([5])),
        "83a474797065aa706565725f7175657279a57370616365c40173ac626c6f636b5f686173686573c4080500000000000000",
    ),
    (
        PeerAnswer(),
        "81a474797065ab706565725f616e73776572",
    ),
    (
        TierRate("remote", "redis-1", 0.25, 0.5),
        "94a672656d6f7465a772656469732d31cb3fd0000000000000cb3fe0000000000000",
    ),
    (
        StoredResponse(tenant="t", frontend="f-1", status="completed", previous="resp_0", input=b"[]", response=b"{}"),
        "87a474797065af73746f7265645f726573706f6e7365a674656e616e74a174a866726f6e74656e64a3662d31a67374617475"
        "73a9636f6d706c65746564a870726576696f7573a6726573705f30a5696e707574c4025b5da8726573706f6e7365c4027b7d",
    ),
    (
        ApiKey(
            name="ci",
            tenant="t",
            models=["tiny*"],
            requests_per_s=2.5,
            burst=3,
            tokens_per_min=4,
            max_concurrent=5,
            expires_at=1.5,
            cache_salt="s",
        ),
        "8aa474797065a76170695f6b6579a46e616d65a26369a674656e616e74a174a66d6f64656c7391a574696e792aae726571756573"
        "74735f7065725f73cb4004000000000000a5627572737403ae746f6b656e735f7065725f6d696e04ae6d61785f636f6e63757272"
        "656e7405aa657870697265735f6174cb3ff8000000000000aa63616368655f73616c74a173",
    ),
    (
        StoredFile(
            tenant="t", filename="a", purpose="batch", num_bytes=3, num_pieces=1, created_at=1.5, expires_at=2.5
        ),
        "88a474797065ab73746f7265645f66696c65a674656e616e74a174a866696c656e616d65a161a7707572706f7365a5626174"
        "6368a96e756d5f627974657303aa6e756d5f70696563657301aa637265617465645f6174cb3ff8000000000000aa65787069"
        "7265735f6174cb4004000000000000",
    ),
    (
        StoredBatch(
            tenant="t",
            input_file="file-1",
            endpoint="/v1/completions",
            metadata={"a": "b"},
            created_at=1.5,
            expires_at=2.5,
            num_lines=3,
            errors=[LineError("invalid_url", "no", 2, "url")],
            used=TokensUsed(1, 2, 3, 4),
        ),
        "de000aa474797065ac73746f7265645f6261746368a674656e616e74a174aa696e7075745f66696c65a666696c652d31a865"
        "6e64706f696e74af2f76312f636f6d706c6574696f6e73a86d6574616461746181a161a162aa637265617465645f6174cb3f"
        "f8000000000000aa657870697265735f6174cb4004000000000000a96e756d5f6c696e657303a66572726f72739184a4636f"
        "6465ab696e76616c69645f75726ca76d657373616765a26e6fa46c696e6502a5706172616da375726ca47573656484ac696e"
        "7075745f746f6b656e7301ad6f75747075745f746f6b656e7302ad6361636865645f746f6b656e7303b0726561736f6e696e"
        "675f746f6b656e7304",
    ),
    (
        BatchJob(tenant="t", batch="batch_1"),
        "83a474797065a962617463685f6a6f62a674656e616e74a174a56261746368a762617463685f31",
    ),
    (
        LineResult(is_completed=True, line=b"{}"),
        "83a474797065ab6c696e655f726573756c74ac69735f636f6d706c65746564c3a46c696e65c4027b7d",
    ),
    (
        ResponseQuery(response="resp_1", cancel=True),
        "83a474797065ae726573706f6e73655f7175657279a8726573706f6e7365a6726573705f31a663616e63656cc3",
    ),
    (
        ResponseState(is_running=True),
        "82a474797065ae726573706f6e73655f7374617465aa69735f72756e6e696e67c3",
    ),
    (Resume(frontend="f-1", seq=7), "83a474797065a6726573756d65a866726f6e74656e64a3662d31a373657107"),
    (Drain(grace_s=2.5), "82a474797065a5647261696ea767726163655f73cb4004000000000000"),
    (
        BlockOffer(
            source=AgentAddress(
                agent="w-1.ab",
                transport="loopback",
                fingerprint="m",
                block_bytes=64,
                num_blocks=8,
                endpoint=b"/s",
                endpoint_digest=7,
            ),
            lease=9,
            slot=1,
            blocks=pack_u32([2, 3]),
            lease_s=10.0,
        ),
        "86a474797065ab626c6f636b5f6f66666572a6736f7572636588a474797065ad6167656e745f61646472657373a56167656e"
        "74a6772d312e6162a97472616e73706f7274a86c6f6f706261636bab66696e6765727072696e74a16dab626c6f636b5f6279"
        "74657340aa6e756d5f626c6f636b7308a8656e64706f696e74c4022f73af656e64706f696e745f64696765737407a56c6561"
        "736509a4736c6f7401a6626c6f636b73c4080200000003000000a76c656173655f73cb4024000000000000",
    ),
    (SetRoles(roles=["decode"]), "82a474797065a97365745f726f6c6573a5726f6c657391a66465636f6465"),
    (
        KeyUses("f-1", [KeyUse("ab" * 32, 3, -20.5, 2)]),
        "93a86b65795f75736573a3662d319194d940" + "6162" * 32 + "03cbc03480000000000002",
    ),
]

"""Messages and their bytes in hex."""


def test_a_step_of_an_older_worker_is_read() -> None:
    golden = GOLDEN[2][1]
    assert "91930700a0" in golden, "an acceptance without cached tokens or a source"
    older = bytes.fromhex("99" + golden[2:].removesuffix("9090").replace("91930700a0", "919107"))
    assert codec(StepBatch).decode(older) == GOLDEN[2][0]


def test_a_decision_of_an_older_router_is_read() -> None:
    golden = next(golden for message, golden in GOLDEN if isinstance(message, RouteBatch))
    older = bytes.fromhex(golden.replace("9aa3712d31", "98a3712d31").replace("a3662d3109", ""))
    (placed,) = codec(RouteBatch).decode(older).placed
    assert (placed.request_id, placed.frontend, placed.ticket) == ("q-1", "", 0)


@pytest.mark.parametrize(("message", "golden"), GOLDEN)
def test_bytes_are_golden(message: msgspec.Struct, golden: str) -> None:
    assert encode(message).hex() == golden
    assert codec(type(message)).decode(bytes.fromhex(golden)) == message


def test_events_are_told_apart_by_tag() -> None:
    batch = codec(KvBatch).decode(bytes.fromhex(GOLDEN[5][1]))
    events = [codec(KvEvent).decode(bytes(event)) for event in batch.events]  # type: ignore[arg-type]
    assert events == [BlocksStored(0, pack_u64([5])), BlocksRemoved(pack_u64([5]), "host"), BlocksCleared()]
