"""LlamaGen against its published counts and key names, and against a plain network with every slot spelled out."""

import math

import pytest
import torch
import torch.nn.functional as F

from burnish.models.llamagen.files import load_gpt, load_vq, save_model
from burnish.models.llamagen.gpt import GPT, Cache, GPTConfig, Slots, released_gpt, rotary
from burnish.models.llamagen.vq import RELEASED_VQ, VQConfig, VQModel

TEXT = GPTConfig(dim=64, layers=3, heads=2, vocabulary=50, caption_dim=24, caption_length=7)
CLASS = GPTConfig(dim=64, layers=3, heads=2, vocabulary=50, classes=5)
SMALL_VQ = VQConfig(channels=32, multipliers=(1, 2), latent=32, codes=30, width=8)


def gpt(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.15) if weight.dim() > 1 else torch.nn.init.normal_(weight, 1.0, 0.1)
        assert name
    return model


def plain(model: GPT, slots: torch.Tensor, visible: torch.Tensor, ids: torch.Tensor, side: int) -> torch.Tensor:
    """The released network as its notes describe it: zero rotary on the prefix, dense mask with the identity in it."""
    t, n = slots.shape[1], ids.shape[1]
    x = torch.cat([slots, model.tok_embeddings(ids)], 1)[:, : t + n - 1]
    length, heads = x.shape[1], model.config.heads
    d = model.config.dim // heads
    table = torch.cat([torch.zeros(t, 1, d // 2, 2), rotary(side, d, x.device)])[:length]
    see = torch.ones(length, length).tril().bool().expand(len(x), -1, -1).clone()
    see[:, :, :t] &= visible[:, None]
    see |= torch.eye(length, dtype=torch.bool)

    def rms(v, weight):
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turn(v):
        z = torch.view_as_complex(v.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(z * torch.view_as_complex(table.contiguous())[None]).flatten(-2)

    for layer in model.layers:
        h = rms(x, layer.attention_norm.weight) @ layer.attention.wqkv.weight.T
        q, k, v = (part.unflatten(-1, (heads, d)) for part in h.split(model.config.dim, -1))
        score = torch.einsum("bqhd,bkhd->bhqk", turn(q), turn(k)) / math.sqrt(d)
        probability = score.masked_fill(~see[:, None], -torch.inf).softmax(-1)
        x = x + torch.einsum("bhqk,bkhd->bqhd", probability, v).flatten(2) @ layer.attention.wo.weight.T
        h = rms(x, layer.ffn_norm.weight)
        gate = F.silu(h @ layer.feed_forward.w1.weight.T) * (h @ layer.feed_forward.w3.weight.T)
        x = x + gate @ layer.feed_forward.w2.weight.T
    return rms(x, model.norm.weight)[:, t - 1 :]


def left_padded(lengths: list[int], slots: int) -> torch.Tensor:
    return torch.arange(slots)[None] >= slots - torch.tensor(lengths)[:, None]


def all_kinds() -> list[tuple[GPT, torch.Tensor, torch.Tensor, Slots]]:
    model, classes = gpt(CLASS), torch.tensor([4, 0, 5])
    slots = model.cls_embedding.embedding_table(classes).unsqueeze(1)
    cases = [(model, slots, torch.ones(3, 1, dtype=torch.bool), model.class_slots(classes))]
    model, visible = gpt(TEXT), left_padded([3, 7, 1], 7)
    features = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1))
    cases.append((model, model.cls_embedding.cap_proj(features), visible, model.caption_slots(features, visible)))
    slots = model.cls_embedding.cap_proj(model.cls_embedding.uncond_embedding).expand(3, -1, -1)
    cases.append((model, slots, visible, model.null_caption_slots(visible)))
    return cases


@pytest.mark.parametrize("case", range(3), ids=["class", "caption", "no caption"])
def test_one_slot_stands_for_the_prefix(case):
    model, embedded, visible, slots = all_kinds()[case]
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(2))
    expected = plain(model, embedded, visible, ids, side=3)
    torch.testing.assert_close(model.all(ids, slots, 3), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.all(ids, slots, 3, recompute=True), expected, atol=1e-5, rtol=1e-5)


def token_by_token(model: GPT, ids: torch.Tensor, side: int, slots: Slots, cache: Cache) -> torch.Tensor:
    prefix = model.prefix(slots)
    bias = model.fill(cache, prefix)
    steps = [model.next(ids[:, i], i, side, cache, bias) for i in range(side**2 - 1)]
    return torch.stack([model.first(prefix), *steps], 1)


@pytest.mark.parametrize("side", [3, 9], ids=["in the first room", "in rooms that grow"])
@pytest.mark.parametrize("case", range(3), ids=["class", "caption", "no caption"])
def test_token_by_token_equals_all_at_once(case, side):
    model, _, _, slots = all_kinds()[case]
    ids = torch.randint(50, (3, side**2), generator=torch.Generator().manual_seed(2))
    cache = model.cache(3, side**2, torch.float32, ids.device)
    found = token_by_token(model, ids, side, slots, cache)
    torch.testing.assert_close(found, model.all(ids, slots, side), atol=1e-5, rtol=1e-5)
    assert cache.room == cache.slots and all(part.is_contiguous() for part in (*cache.keys, *cache.values))


@pytest.mark.parametrize("case", range(3), ids=["class", "caption", "no caption"])
def test_a_draw_does_not_see_what_an_earlier_one_left_in_the_memory(case):
    model, _, _, slots = all_kinds()[case]
    ids = torch.randint(50, (3, 49), generator=torch.Generator().manual_seed(2))
    cache = model.cache(4, 49, torch.float32, ids.device)
    expected = token_by_token(model, ids, 7, slots, cache.of(3))
    for part in cache.memory:
        part.fill_(torch.nan)
    assert torch.equal(token_by_token(model, ids, 7, slots, cache.of(3)), expected)


def test_a_prefix_is_shared_by_its_samples():
    model, _, _, slots = all_kinds()[1]
    ids = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(3))
    rows = torch.tensor([1, 1, 0, 2])
    apart = torch.cat([model.all(ids[i : i + 1], slots.take(rows[i : i + 1]), 3) for i in range(4)])
    torch.testing.assert_close(model.all(ids, slots.take(rows), 3), apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "text", "millions"),
    [("B", False, 110.9), ("B", True, 112.5), ("L", False, 342.9), ("L", True, 345.3), ("XL", False, 774.7),
     ("XL", True, 777.9), ("XXL", False, 1411.0), ("XXL", True, 1415.2), ("3B", False, 3096.7), ("3B", True, 3110.5)],
)  # fmt: skip
def test_released_sizes_have_their_published_parameters(size, text, millions):
    with torch.device("meta"):
        model = GPT(released_gpt(size, text))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    null = 120 * 2048 / 1e6  # the null caption is a buffer in LlamaGen and a parameter in AR-GRPO: published both ways
    assert min(abs(count - millions), abs(count + null - millions)) < 0.06 * max(1.0, millions / 1000)


@pytest.mark.parametrize(
    ("name", "entries", "millions", "shortcuts"),
    [("VQ-16", 343, 71.88, ["encoder.conv_blocks.2", "encoder.conv_blocks.4", "decoder.conv_blocks.1",
                            "decoder.conv_blocks.3"]),
     ("VQ-8", 299, 70.11, ["encoder.conv_blocks.1", "encoder.conv_blocks.3", "decoder.conv_blocks.1",
                           "decoder.conv_blocks.3"])],
)  # fmt: skip
def test_released_tokenizers_have_their_published_shape(name, entries, millions, shortcuts):
    with torch.device("meta"):
        model = VQModel(RELEASED_VQ[name])
    keys = model.state_dict()
    assert len(keys) == entries  # and `quantize.codebook_used`, a statistic of training that is read and dropped
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.006
    assert [k.split(".res.")[0] for k in keys if k.endswith("nin_shortcut.weight")] == shortcuts


def test_released_keys():
    with torch.device("meta"):
        keys = set(GPT(released_gpt("B", True)).state_dict())
    layer = {f"layers.0.{k}.weight" for k in ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
                                              "feed_forward.w3", "attention_norm", "ffn_norm")}  # fmt: skip
    outside = {"tok_embeddings.weight", "norm.weight", "output.weight", "cls_embedding.uncond_embedding",
               "cls_embedding.cap_proj.fc1.weight", "cls_embedding.cap_proj.fc2.weight"}  # fmt: skip
    assert {k for k in keys if k.startswith("layers.0.")} == layer
    assert {k for k in keys if not k.startswith("layers.")} == outside


def test_a_new_head_is_zero_and_the_codes_are_unit_vectors():
    assert not GPT(CLASS).output.weight.any()
    model = VQModel(SMALL_VQ)
    torch.testing.assert_close(model.quantize.vectors(torch.arange(30)).norm(dim=-1), torch.ones(30))


def test_the_tokenizer_finds_the_code_it_was_given():
    model = VQModel(SMALL_VQ)
    vectors = model.quantize.vectors(torch.tensor([3, 29, 0]))
    assert model.quantize.nearest(vectors * torch.tensor([[5.0], [0.1], [1.0]])).tolist() == [3, 29, 0]


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "folder"])
def test_weights_survive_files(tmp_path, wrapper, kind):
    model, vq = gpt(TEXT), VQModel(SMALL_VQ)
    if kind == "folder":
        save_model(model, tmp_path)
        save_model(vq, tmp_path)
        again, vq_again = load_gpt(tmp_path, None), load_vq(tmp_path, None)
    else:
        state = dict(model.state_dict())
        state["layers.0.attention.kv_cache.k_cache"] = torch.zeros(2)
        vq_state = dict(vq.state_dict()) | {"quantize.codebook_used": torch.zeros(65536)}
        for name, content in (("gpt", state), ("vq", vq_state)):
            if kind == "pt":
                torch.save({wrapper: content} if wrapper else content, tmp_path / f"{name}.pt")
            else:
                from safetensors.torch import save_file

                save_file(content, tmp_path / f"{name}.safetensors")
        again = load_gpt(tmp_path / f"gpt.{kind}", TEXT)
        vq_again = load_vq(tmp_path / f"vq.{kind}", SMALL_VQ)
    for a, b in ((model, again), (vq, vq_again)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda s: s.pop("norm.weight"), "missing norm.weight"),
     (lambda s: s.update(extra=torch.zeros(1)), "surplus extra"),
     (lambda s: s.update({"norm.weight": torch.zeros(3)}), r"norm.weight is \(3,\), expected \(64,\)")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    state = dict(gpt(CLASS).state_dict())
    change(state)
    torch.save({"model": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load_gpt(tmp_path / "x.pt", CLASS)


@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_foreign_and_truncated_files_get_a_sentence(tmp_path, content, suffix):
    path = tmp_path / f"x.{suffix}"
    if content is None:
        whole = tmp_path / "whole.pt"
        torch.save({"model": gpt(CLASS).state_dict()}, whole)
        content = whole.read_bytes()[:20000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not readable as weights"):
        load_gpt(path, CLASS)
