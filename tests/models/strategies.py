"""Architectures of every shape, as hypothesis draws them."""

from hypothesis import strategies as st

from alignctl.config.sections import Model


@st.composite
def models(draw: st.DrawFn, *, tp: int = 1) -> Model:
    """A llama2 or bloom that `tp` ranks can share."""
    is_bloom = draw(st.booleans())
    groups = tp * draw(st.integers(1, 3))
    heads = groups * (1 if is_bloom else draw(st.integers(1, 3)))
    hidden = heads * 2 * draw(st.integers(1, 2))
    return Model(
        family="bloom" if is_bloom else "llama2",
        num_layers=draw(st.integers(1, 3)),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=4 * hidden if is_bloom else tp * draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 40)),
        max_position_embeddings=64,
        rotary_base=None if is_bloom else 10000.0,
        tie_embeddings=draw(st.booleans()),
        vocab_divisor=draw(st.sampled_from([1, 2, 8])),
    )
