"""What other layers may rely on; a change here is a change of the contract."""

from importlib import import_module

import pytest

PUBLIC = {
    "ezigen": "EZIGenPipeline Personalizer __version__",
    "ezigen.adapters": "AdapterCard AdapterSet KeyValue SubjectAdapter SubjectBlock SubjectKV adapter_fingerprint "
    "add_subject_encoder attach_adapters detach_adapters detached import_checkpoint load_adapter read_card "
    "resolve_adapter save_adapter",
    "ezigen.baselines": "Baseline BaselineRequest baseline_fingerprint find_baseline load_baseline",
    "ezigen.diffusion": "CLEAN NoiseSchedule NoiseSource PredictionType Purpose Spacing "
    "ddim_step ddpm_step dpmpp_2m_step",
    "ezigen.images": "FORMATS SUFFIXES ImageFormat Picture decode_picture encode_image encode_png fit_square "
    "side_by_side thumbnail_strip tiled to_picture",
    "ezigen.metrics": "CLIP_MODEL DINO_MODEL FaceEncoder FaceScorer Interval Measurer OnnxFaceEncoder Scorer Shown "
    "load_face_scorer load_scorer mean_interval paired_difference psnr ssim",
    "ezigen.models": "ImageEncoder Segmenter Stack TextCondition TextImageEncoder call_unet decode_latents "
    "encode_pictures encode_posterior encode_prompts load_image_encoder load_segmenter load_stack "
    "load_text_image_encoder model_fingerprint resolve_folder to_image to_pixels tokenize_prompts transformer_blocks",
    "ezigen.pairs": "SELECTION Box Mask PairPictures Refusal RefusalReason bounding_box check_frames "
    "check_object check_subject_mask check_target_mask connected_share count_frame_pairs cut_target "
    "decode_segmentation distinct_frames draw_frames make_coco_pair make_video_pair mask_of_value "
    "min_distance pair_rng rank_objects square_around",
    "ezigen.sampling": "Edit Generator OnStep Phase Request Sample StepReport StopReason attach_to_stack "
    "load_generator patch_similarity stop_reason",
    "ezigen.sketch": "SketchModel Sketcher SketchingEngine check_sketch find_pipeline "
    "load_sketch_model load_sketcher load_sketching_engine sketch_fingerprint word_attention",
    "ezigen.subject": "LearnedEncoder ProjectedTokens SUBJECT_PROMPT SubjectEncoder SubjectFeatures TrainedUNet "
    "encode_latents record_norms",
    "ezigen.training": "SOURCES Conditioner Conditions Draws Learner LossTerms StepReport TrainBatch TrainingDiverged "
    "choose_precision draw learning_rate pair_loss without_dropout",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package):
    module = import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018
